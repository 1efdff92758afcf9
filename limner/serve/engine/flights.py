"""Images that are drawn side by side: each by its own solver, all by the same calls of their model's network."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence

from limner.core import Denoised, Draws
from limner.diffusion.sampling import Call, Drawing
from limner.diffusion.solvers import Query, Step
from limner.serve.engine.memory import is_fatal, release
from limner.serve.engine.models import Served
from limner.serve.engine.orders import Image
from limner.serve.engine.rows import CallFailed, again, evaluate, same_guesses
from limner.serve.engine.turns import in_turn
from limner.serve.engine.works import Works, is_told
from limner.settings import lacks_memory


class Flight:
    """One image under way. Nothing of it is shared with another."""

    def __init__(self, image: Image):
        self.image = image
        self.drawing: Drawing | None = None
        self.query: Query | None = None
        self.evaluations = 0
        self.landed = False

    def calls(self) -> list[Call]:
        """What the solver asks for now. Raises LimnerError for settings that do not fit the model."""
        if self.drawing is None:
            order = self.image.order
            draws = Draws([self.image.seed], order.served.device)
            self.drawing = Drawing(order.served.model, order.condition, order.sampling, draws)
            self.query = next(self.drawing.solver)
            self.evaluations = 0
        assert self.query
        return self.drawing.calls(self.query.x, self.query.level)

    def take(self, guesses: Sequence[Denoised]) -> Step | None:
        """Answer the solver; the step that this ends."""
        assert self.drawing and self.query
        self.evaluations += len(guesses)
        query, denoised = self.query, self.drawing.combine(guesses)
        try:
            self.query = self.drawing.solver.send(denoised)
        except StopIteration as end:
            self.landed = True
            return Step(query.done + 1, end.value, denoised.data)
        if self.query.done > query.done:
            return Step(self.query.done, self.query.x, denoised.data)
        return None

    def close(self) -> None:
        """Forget what was drawn so far; it may begin again."""
        if self.drawing is not None:
            self.drawing.solver.close()
        self.drawing = self.query = None


class Fleet:
    """The flights of one model. A step is one call of its network, and one more where another model guides."""

    def __init__(
        self, served: Served, works: Works, of_model: Mapping[int, Served], check_every: int,
        changed: Callable[[Served], None],
    ):  # fmt: skip
        self.served, self.works, self.of_model = served, works, of_model
        self.check_every, self.changed = check_every, changed
        self.flights: dict[Image, Flight] = {}
        self.group: set[Image] = set()  # whole and single batching: those that began together

    @property
    def empty(self) -> bool:
        return not self.flights

    @property
    def flying(self) -> int:
        return sum(image.started is not None for image in self.flights)

    @property
    def waiting(self) -> int:
        return len(self.flights) - self.flying

    def add(self, image: Image) -> None:
        self.flights[image] = Flight(image)

    def sweep(self) -> None:
        """Close the flights that are over."""
        for image in [image for image in self.flights if image.over]:
            self.flights.pop(image).close()

    def restart(self, served: Served) -> None:
        """Begin again what was drawn by a model whose bits have changed."""
        for image, flight in self.flights.items():
            if served in (image.order.served, *image.order.others):
                flight.close()

    # ---- a step

    def step(self) -> None:
        with self.served.context():
            if asked := self._choose():
                self._draw(asked)
        self.sweep()

    def _draw(self, asked: Mapping[Flight, Sequence[Call]]) -> None:
        for flight in asked:
            self.works.begun(flight.image)
        try:
            guesses = self._evaluate([call for calls in asked.values() for call in calls])
        except CallFailed as error:
            self._recover(list(asked), error)
        else:
            self._advance(asked, guesses)

    def _choose(self) -> dict[Flight, list[Call]]:
        """The flights of this call, each with its rows: at most as many as a call may have, and at least one flight."""
        images = in_turn(self.flights)
        if self.served.batching in ("whole", "single"):
            self.group &= self.flights.keys()
            images = [image for image in images if image in self.group] or images
        chosen: dict[Flight, list[Call]] = {}
        room = self.served.rows.most
        for image in images:
            if room <= 0:
                break
            if image.over:  # since another image of its work failed just now
                continue
            flight = self.flights[image]
            try:
                calls = flight.calls()
            except Exception as error:
                self._fail(flight, error)
                continue
            rows = sum(call.model is self.served.model for call in calls)
            if chosen and (rows > room or self.served.batching == "single"):
                break
            chosen[flight] = calls
            room -= rows
        if self.served.batching in ("whole", "single") and not self.group:
            self.group = {flight.image for flight in chosen}
        return chosen

    def _evaluate(self, calls: Sequence[Call]) -> list[Denoised]:
        """The guesses for calls of one row each, which may be of several models. Raises CallFailed."""
        guesses: dict[int, Denoised] = {}
        by_model: dict[int, list[int]] = {}
        for i, call in enumerate(calls):
            by_model.setdefault(id(call.model), []).append(i)
        for model, places in by_model.items():
            found = self._call(self.of_model[model], [calls[i] for i in places])
            guesses.update(zip(places, found, strict=True))
        return [guesses[i] for i in range(len(calls))]

    def _call(self, served: Served, calls: Sequence[Call]) -> list[Denoised]:
        counters, start = served.counters, time.perf_counter()
        with served.context():
            try:
                guesses = evaluate(calls, served.rows_of)
            except CallFailed as error:
                error.served = served
                raise
            served.keep_pace()
            counters.seconds += time.perf_counter() - start
            counters.calls += 1
            counters.rows[len(calls)] += 1
            if served.batching == "exact" and counters.calls % self.check_every == 0:
                self._check(served, calls, guesses)
        return guesses

    def _check(self, served: Served, calls: Sequence[Call], guesses: Sequence[Denoised]) -> None:
        """Do a call again in other company; where a bit differs, say so, and take one number of rows from now on."""
        if same_guesses(guesses, again(calls, served.rows_of, served.strangers)):
            return
        served.counters.mismatches += 1
        served.say(
            f"{served.id}: a row of a call depended on the others, which it must not; from now on all calls have "
            f"{served.rows.counts[0]} rows."
        )
        if served.fix():
            self.changed(served)

    def _advance(self, asked: Mapping[Flight, Sequence[Call]], guesses: Sequence[Denoised]) -> None:
        at = 0
        for flight, calls in asked.items():
            mine = guesses[at : at + len(calls)]
            at += len(calls)
            if (
                flight.drawing is None or flight.image.over
            ):  # it begins again, or another image of its work failed
                continue
            try:
                self._move(flight, mine)
            except Exception as error:
                self._fail(flight, error)

    def _move(self, flight: Flight, guesses: Sequence[Denoised]) -> None:
        step, drawing = flight.take(guesses), flight.drawing
        if step is None or drawing is None:
            return
        canvas = drawing.canvas(step)
        if flight.landed:
            self.works.landed(flight.image, canvas.picture(), flight.evaluations)
        else:
            self.works.partial(flight.image, canvas.done, canvas.total, canvas.preview)

    # ---- what goes wrong

    def _recover(self, flights: Sequence[Flight], error: CallFailed) -> None:
        """After memory ran short, ask the same again in smaller calls; after another error, each flight alone."""
        cause = error.cause
        if is_fatal(cause):
            raise cause
        if lacks_memory(cause):
            release(self.served.device)
            served = error.served or self.served
            served.counters.out_of_memory += 1
            changed = served.shrink(error.count)
            if changed is not None:  # the next step asks again
                if changed:
                    self.changed(served)
                return
        if len(flights) == 1:
            self._fail(flights[0], cause)
            return
        for flight in flights:
            try:
                calls = flight.calls()
                self._advance({flight: calls}, self._evaluate(calls))
            except CallFailed as alone:
                self._fail(flight, alone.cause)

    def _fail(self, flight: Flight, error: BaseException) -> None:
        if is_fatal(error):
            raise error
        if not (lacks_memory(error) or is_told(error)):
            traceback.print_exception(error)
        self.works.failed(flight.image, error)
