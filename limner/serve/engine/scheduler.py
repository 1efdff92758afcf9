"""The engine: takes works, and draws for all of them, one network call at a time. It has no threads."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from itertools import count

from torch import Tensor

from limner.serve.engine.answers import encode_image
from limner.serve.engine.flights import Fleet
from limner.serve.engine.models import Served
from limner.serve.engine.orders import Image, take_order
from limner.serve.engine.turns import Turns
from limner.serve.engine.whole import Stack
from limner.serve.engine.works import Emit, Encode, Works, is_told
from limner.serve.messages import Report, Work

CHECK_EVERY = 1000  # calls of a model, of which one is done again in other company


class Scheduler:
    """``submit`` works, then ``step`` until it is ``idle``; what happens is emitted.

    An event with a picture is emitted as a function that makes it, so that another thread may encode the picture.
    """

    def __init__(
        self, served: Mapping[str, Served], emit: Emit, encode: Encode = encode_image,
        clock: Callable[[], float] = time.monotonic, check_every: int = CHECK_EVERY,
    ):  # fmt: skip
        self.served, self.ages, self.turns = served, count(), Turns()
        self.works = Works(emit, encode, clock)
        of_model = {id(one.model): one for one in served.values()}
        self.lanes: dict[str, Fleet | Stack] = {
            name: Fleet(one, self.works, of_model, check_every, self._changed)
            if one.flies
            else Stack(one, self.works, check_every, self._changed)
            for name, one in served.items()
            if one.draws
        }

    @property
    def idle(self) -> bool:
        return not self.works.open

    def submit(self, work: Work, image: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Accept a work to draw, or say why it fails.

        ``image`` [1, C, H, W] in [-1, 1] at the size of the run's given pictures, else of the run; ``mask``
        [1, 1, H, W] in {0, 1}, 1: drawn anew.
        """
        try:
            order = take_order(work, self.served, image, mask, self.works.clock())
        except Exception as error:
            if not is_told(error):
                traceback.print_exception(error)
            self.works.refuse(work.id, error)
            return
        images = [Image(order, index, next(self.ages)) for index in range(len(order.seeds))]
        self.works.accept(order, images)
        for image_ in images:
            self.lanes[work.model].add(image_)

    def cancel(self, work: int) -> None:
        """Nothing more of a work is wanted: its rows are gone from the next call."""
        self.works.cancel(work)
        self._sweep()

    def step(self) -> None:
        """One network call, or one canvas of a model that draws by itself; nothing where there is nothing to draw."""
        if self.works.cancel_late():
            self._sweep()
        if lane := self.turns.next(list(self.lanes.values())):
            lane.step()

    def _sweep(self) -> None:
        for lane in self.lanes.values():
            lane.sweep()

    def _changed(self, served: Served) -> None:
        for lane in self.lanes.values():
            lane.restart(served)

    def reports(self) -> dict[str, Report]:
        """What each model did since the start, and what is under way."""
        return {name: self._report(name) for name in self.served}

    def _report(self, name: str) -> Report:
        counters, lane = self.served[name].counters, self.lanes.get(name)
        return Report(
            name, counters.calls, dict(sorted(counters.rows.items())), counters.seconds, counters.images,
            counters.cancelled, counters.out_of_memory, counters.mismatches,
            lane.flying if lane else 0, lane.waiting if lane else 0,
        )  # fmt: skip
