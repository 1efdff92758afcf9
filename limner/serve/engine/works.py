"""The works under way, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from limner.core import ImageSpec
from limner.serve.engine.orders import Image, Order, Refused
from limner.serve.engine.sentences import told
from limner.serve.messages import Event, Form
from limner.settings import LimnerError, lacks_memory

NO_MEMORY = "The server has too little memory to draw this image: ask for less, or try again later."
BROKEN = "Drawing this image failed because of an error of the server: the server's log says more."
NAN = (
    "The image drawn holds NaN, so the training of this model has gone wrong: use an earlier checkpoint, or train "
    "again with a lower learning rate."
)

# Takes an event, or what makes it, which may then be called in another thread: pictures are encoded there.
Emit = Callable[[Event | Callable[[], Event]], object]
Encode = Callable[[Tensor, Form, ImageSpec], bytes]


class Works:
    """Says of each work that it was accepted, what came of it, and that it ended, once."""

    def __init__(self, emit: Emit, encode: Encode, clock: Callable[[], float]):
        self.emit, self.encode, self.clock = emit, encode, clock
        self.open: dict[int, list[Image]] = {}

    def accept(self, order: Order, images: list[Image]) -> None:
        self.open[order.work.id] = images
        self.emit(Event(order.work.id, "accepted", evaluations=order.evaluations))

    def refuse(self, work: int, error: Exception) -> None:
        """Of a work that was never accepted."""
        refused = error if isinstance(error, Refused) else refusal(error, 400)
        self._failed(work, -1, refused)

    def begun(self, image: Image, when: float | None = None) -> None:
        """Its first network call begins, or began at ``when``."""
        if image.started is None:
            image.started = self.clock() if when is None else when
            self.emit(Event(image.order.work.id, "begun", image.index))

    def partial(self, image: Image, done: int, total: int, picture: Callable[[], Tensor]) -> None:
        """An intermediate image after ``done`` steps, [1, C, H, W], if one is wanted now."""
        if image.wants_partial(done, total):
            event = Event(image.order.work.id, "partial", image.index, image.shown)
            while image.wants_partial(done, total):  # few steps pass several at once
                image.shown += 1
            self._send(event, image, picture().float()[0].cpu())

    def landed(self, image: Image, picture: Tensor, evaluations: int) -> None:
        """The result [1, C, H, W] of an image."""
        order, seconds = image.order, self.clock() - (image.started or self.clock())
        picture = picture.float().clamp(-1, 1)[0].cpu()
        if picture.isnan().any():
            self.failed(image, Refused(NAN, 500))
            return
        event = Event(
            order.work.id, "image", image.index, evaluations=evaluations, seconds=seconds,
            seed=order.work.seeds[image.index], fingerprint=order.fingerprint,
        )  # fmt: skip
        self._send(event, image, picture)
        image.over = True
        order.served.counters.images += 1
        if all(one.over for one in self.open[order.work.id]):
            self._end(order.work.id)

    def failed(self, image: Image, error: BaseException) -> None:
        """One image cannot be drawn, and with it ends its work; nobody else's."""
        status = 400 if image.started is None else 500
        refused = error if isinstance(error, Refused) else refusal(error, status)
        for one in self.open.pop(image.order.work.id, ()):
            one.over = True
        self._failed(image.order.work.id, image.index, refused)

    def cancel(self, work: int) -> None:
        """Nothing more of a work is wanted; twice is as good as once."""
        if work in self.open:
            for image in self.open[work]:
                image.order.served.counters.cancelled += not image.over
                image.over = True
            self._end(work, cancelled=True)

    def cancel_late(self) -> bool:
        """Cancel the works whose time is over; whether there were any."""
        now = self.clock()
        late = [work for work, images in self.open.items() if images[0].order.deadline <= now]
        for work in late:
            self.cancel(work)
        return bool(late)

    def _end(self, work: int, cancelled: bool = False) -> None:
        self.open.pop(work, None)
        self.emit(Event(work, "ended", cancelled=cancelled))

    def _failed(self, work: int, index: int, error: Refused) -> None:
        code = error.code or ("server_error" if error.status >= 500 else "invalid_request")
        self.emit(
            Event(
                work,
                "failed",
                index,
                status=error.status,
                code=code,
                param=error.param,
                message=error.message,
            )
        )
        self._end(work)

    def _send(self, event: Event, image: Image, picture: Tensor) -> None:
        work, spec = image.order.work, image.order.served.model.spec
        self.emit(partial(encoded, event, partial(self.encode, picture, work.form, spec)))


def encoded(event: Event, encode: Callable[[], bytes]) -> Event:
    """The event with its picture; one that cannot be encoded has failed."""
    try:
        return replace(event, data=encode())
    except Exception as error:
        refused = refusal(error, 500)
        return Event(
            event.work,
            "failed",
            event.index,
            status=refused.status,
            code="server_error",
            message=refused.message,
        )


def refusal(error: BaseException, status: int) -> Refused:
    """What a person is told of an error."""
    if lacks_memory(error):
        return Refused(NO_MEMORY, 503, "out_of_memory")
    if isinstance(error, LimnerError):
        message, param = told(error)
        return Refused(message, status, param=param)
    return Refused(BROKEN, 500)


def is_told(error: BaseException) -> bool:
    """Whether the person is told all that there is to say, so that the log needs no trace."""
    return isinstance(error, (LimnerError, Refused))
