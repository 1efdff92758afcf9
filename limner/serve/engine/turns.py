"""Whose turn it is: clients within a call, models from call to call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from limner.serve.engine.orders import Image

CALLS = 8  # that a model makes in its turn while others wait


def in_turn(images: Iterable[Image]) -> list[Image]:
    """Images in the order in which calls take them: the first of every client, then the second of every client, ...

    Of one client, and of those that come at the same turn, the ones that have begun and the oldest go first. So a
    client that asks for many images delays no other, and with too many clients the oldest requests are finished first.
    """
    turns: Counter[str] = Counter()
    keyed = []
    for image in sorted(images, key=lambda image: (image.started is None, image.age)):
        keyed.append((turns[image.client], image.age, image))
        turns[image.client] += 1
    return [image for *_, image in sorted(keyed, key=lambda key: key[:2])]


class Lane(Protocol):
    """The images of one model that wait or are being drawn."""

    @property
    def empty(self) -> bool: ...

    def step(self) -> None: ...


L = TypeVar("L", bound=Lane)


class Turns:
    """Models take turns of at most `CALLS` steps."""

    def __init__(self) -> None:
        self.at, self.left = 0, CALLS

    def next(self, lanes: Sequence[L]) -> L | None:
        """The lane that makes the next step; None: all are empty."""
        for _ in range(len(lanes) + 1):
            lane = lanes[self.at % len(lanes)] if lanes else None
            if lane and self.left > 0 and not lane.empty:
                self.left -= 1
                return lane
            self.at, self.left = (self.at + 1) % max(len(lanes), 1), CALLS
        return None
