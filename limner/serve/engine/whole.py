"""Images that a model draws by itself: those with equal settings are stacked, and drawn canvas by canvas."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress

from torch import Tensor

from limner.core import Canvas, Condition, Draws
from limner.serve.engine.memory import is_fatal, release
from limner.serve.engine.models import Served
from limner.serve.engine.orders import Image
from limner.serve.engine.rows import same_bits
from limner.serve.engine.turns import in_turn
from limner.serve.engine.works import Works, is_told
from limner.settings import lacks_memory


def alike(image: Image, exact: bool) -> str:
    """What images have in common that are drawn together: settings and kinds of conditions; exactly, texts too.

    A longer text beside it would change the shape that a text is read in.
    """
    work, condition = image.order.work, image.order.condition
    shapes = [None if x is None else tuple(x.shape) for x in (condition.image, condition.mask)]
    text = condition.text if exact else condition.text is None
    return json.dumps(
        [work.settings, work.scale_steps, condition.label is None, text, shapes], sort_keys=True
    )


class Batch:
    """Images that are drawn together, those over the first ``images`` being the first one again."""

    def __init__(self, served: Served, images: Sequence[Image]):
        self.served, self.images = served, list(images)
        self.count = served.rows.padded(len(self.images))
        more = self.count - len(self.images)
        self.canvases = self._draw([*self.images, *[self.images[0]] * more])
        self.last: Canvas | None = None

    def _draw(self, images: Sequence[Image]) -> Iterator[Canvas]:
        order, device = images[0].order, self.served.device
        condition = Condition.cat([image.order.condition for image in images])
        draws = Draws([image.seed for image in images], device)
        canvases: Iterator[Canvas] = self.served.model.sample(condition, order.sampling, draws)
        return canvases

    def step(self) -> bool:
        """Draw the next canvas; False: there is none."""
        canvas = next(self.canvases, None)
        self.last = canvas or self.last
        return canvas is not None

    def again(self) -> Tensor:
        """The images once more, at other places."""
        rows = self.served.rows
        count = next((count for count in rows.counts if count > self.count), self.count)
        images = [*[self.images[-1]] * (count - len(self.images)), *reversed(self.images)]
        *_, last = self._draw(images)
        return last.picture()[count - len(self.images) :].flip(0)

    def close(self) -> None:
        if isinstance(self.canvases, Generator):
            self.canvases.close()


class Stack:
    """The images of one model that draws by itself. A step is one canvas."""

    def __init__(
        self, served: Served, works: Works, check_every: int, changed: Callable[[Served], None]
    ):  # fmt: skip
        self.served, self.works, self.check_every, self.changed = served, works, check_every, changed
        self.images: list[Image] = []
        self.batch: Batch | None = None
        self.opened: list[Image] = []  # of the batch, also where none could be made of them
        self.alone: set[Image] = set()  # those that are drawn alone, since a batch with them failed

    @property
    def empty(self) -> bool:
        return not self.images

    @property
    def flying(self) -> int:
        return sum(image.started is not None for image in self.images)

    @property
    def waiting(self) -> int:
        return len(self.images) - self.flying

    def add(self, image: Image) -> None:
        self.images.append(image)

    def sweep(self) -> None:
        """Forget the images that are over, and end a batch that nobody waits for."""
        self.images = [image for image in self.images if not image.over]
        if self.batch and all(image.over for image in self.batch.images):
            self._end()

    def restart(self, served: Served) -> None:
        """Begin again what was drawn by a model whose bits have changed."""
        if self.batch and served in (self.served, *self.batch.images[0].order.others):
            self._end()

    def _end(self) -> None:
        if self.batch:
            with suppress(Exception):
                self.batch.close()
        self.batch = None

    # ---- a step

    def step(self) -> None:
        with self.served.context():
            try:
                self._step()
            except Exception as error:
                self._recover(error)
        self.sweep()

    def _step(self) -> None:
        now = self.works.clock()
        if self.batch is None:
            self.opened = self._choose()
            self.batch = Batch(self.served, self.opened)
        batch, counters, start = self.batch, self.served.counters, time.perf_counter()
        more = batch.step()  # the first one refuses settings that do not fit the model
        for image in batch.images:
            self.works.begun(image, now)
        self.served.keep_pace()
        counters.seconds += time.perf_counter() - start
        counters.calls += more
        counters.rows[len(batch.images)] += more
        if batch.last is None:
            raise RuntimeError(f"{self.served.id} drew nothing")
        if more and batch.last.done < batch.last.total:
            self._show(batch, batch.last)
            return
        while batch.step():  # what comes after the last of its steps, if anything
            pass
        self._land(batch, batch.last.picture())

    def _choose(self) -> list[Image]:
        """The images of the next batch: the first in turn, and those that go with it."""
        images, exact = in_turn(self.images), self.served.batching != "quick"
        self.alone &= set(images)
        if images[0] in self.alone or self.served.batching == "single":
            return images[:1]
        kind = alike(images[0], exact)
        return [image for image in images if image not in self.alone and alike(image, exact) == kind][
            : self.served.rows.most
        ]

    def _show(self, batch: Batch, canvas: Canvas) -> None:
        wanting = [
            (i, image)
            for i, image in enumerate(batch.images)
            if not image.over and image.wants_partial(canvas.done, canvas.total)
        ]
        if wanting:
            pictures = canvas.preview()
            for i, image in wanting:
                self.works.partial(image, canvas.done, canvas.total, pictures[i : i + 1].clone)

    def _land(self, batch: Batch, pictures: Tensor) -> None:
        served = self.served
        served.drawn += 1
        due = served.batching == "exact" and served.drawn % self.check_every == 0
        if due and not same_bits(pictures[: len(batch.images)], batch.again()):
            served.counters.mismatches += 1
            served.say(
                f"{served.id}: an image depended on the others of its batch, which it must not; from now on "
                f"{served.rows.counts[0]} are drawn at once."
            )
            if served.fix():  # which draws this batch again
                self.changed(served)
                return
        for i, image in enumerate(batch.images):
            if not image.over:
                self.works.landed(image, pictures[i : i + 1].clone(), image.order.evaluations)
        self._end()

    # ---- what goes wrong

    def _recover(self, error: Exception) -> None:
        """After memory ran short, draw fewer at once; after another error, each image alone."""
        if is_fatal(error):
            raise error
        images = [image for image in self.opened if not image.over]
        count = self.served.rows.padded(len(self.opened))
        self._end()
        if lacks_memory(error):
            release(self.served.device)
            self.served.counters.out_of_memory += 1
            changed = self.served.shrink(count)
            if changed is not None:
                if changed:
                    self.changed(self.served)
                return
        elif len(images) > 1:
            self.alone |= set(images)
            return
        if not (lacks_memory(error) or is_told(error)):
            traceback.print_exception(error)
        for image in images:
            self.works.failed(image, error)
