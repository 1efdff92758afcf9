"""Room in the queue: what waits, by client and in all, and how long that will take."""

from __future__ import annotations

import math
import time
from collections import Counter, deque

from limner.serve.http.errors import ApiError
from limner.serve.http.metrics import Meters
from limner.serve.messages import Card, Event, Work

LEAST_WAIT, MOST_WAIT = 1, 120  # seconds of Retry-After
BYTES = 2**29  # of pictures that people have sent and that wait
WINDOW = 30.0  # seconds over which the rate is taken
UNKNOWN_RATE = 0.5  # seconds an image, while none has been drawn


def price(work: Work, card: Card) -> float:
    """Network evaluations of one image, as far as the settings say; the engine knows better once it has the work."""
    defaults = {knob.name: knob.default for knob in card.knobs}

    def number(name: str) -> float:
        value = work.settings.get(name, defaults.get(name))
        return float(value) if isinstance(value, (int, float)) and value else 1.0

    return number("steps") * work.scale_steps * (number("repaints") if work.mask else 1.0)


def pictures_of(work: Work) -> int:
    """Images to draw, or pictures to describe."""
    return max(1, len(work.seeds) if work.kind == "draw" else len(work.pictures))


def bytes_of(work: Work) -> int:
    """Of the pictures that came with it."""
    return sum(map(len, work.pictures)) + len(work.mask)


class Rate:
    """Evaluations a second, over the last half minute."""

    def __init__(self) -> None:
        self.done: deque[tuple[int, float]] = deque()  # second, evaluations

    def add(self, evaluations: float) -> None:
        now = int(time.monotonic())
        if self.done and self.done[-1][0] == now:
            evaluations += self.done.pop()[1]
        self.done.append((now, evaluations))

    def value(self) -> float:
        now = time.monotonic()
        while self.done and self.done[0][0] < now - WINDOW:
            self.done.popleft()
        if not self.done:
            return 0.0
        return sum(evaluations for _, evaluations in self.done) / max(1.0, now - self.done[0][0])


class Place:
    """The images of one work in the queue. Those that wait are counted; those that are drawn no more."""

    def __init__(self, places: Places, work: Work, name: str, each: float):
        self.places, self.model, self.client, self.name, self.each = (
            places,
            work.model,
            work.client,
            name,
            each,
        )
        self.left, self.bytes = pictures_of(work), bytes_of(work)
        places.bytes += self.bytes
        self.waiting, self.began, self.gone = self.left, time.monotonic(), False
        self._begun: set[int] = set()
        places._count(self, self.waiting)

    def saw(self, event: Event) -> None:
        """An event of the work."""
        if self.gone:
            return
        if event.kind == "accepted" and event.evaluations:
            self.places.price += (event.evaluations - self.each) * self.waiting
            self.each = float(event.evaluations)
        elif event.kind == "begun":
            self._begin(event.index)
        elif event.kind in ("image", "answer"):
            self._begin(event.index)
            self.left -= 1
            self.places.made(self, event)
        elif event.kind == "ended":
            self.leave(event.cancelled)

    def _begin(self, index: int) -> None:
        """An image, or all of them (-1), wait no more."""
        if not self._begun:
            self.places.meters.begun(self.model, time.monotonic() - self.began)
        if index in self._begun:
            return
        self._begun.add(index)
        number = self.waiting if index < 0 else min(1, self.waiting)
        self.waiting -= number
        self.places._count(self, -number)

    def leave(self, cancelled: bool = False) -> None:
        """Nothing of it waits any more."""
        if self.gone:
            return
        self.gone = True
        self.places.bytes -= self.bytes
        self.places._count(self, -self.waiting)
        self.waiting = 0
        if cancelled and self.left > 0:
            self.places.meters.cancelled[self.model, self.name] += self.left


class Places:
    """The queue's length, by client and model, and its price in network evaluations."""

    def __init__(self, most: int, most_client: int, meters: Meters):
        self.most, self.most_client, self.meters = most, most_client, meters
        self.waiting, self.price, self.bytes, self.rate = 0, 0.0, 0, Rate()
        self.by_client: Counter[str] = Counter()
        self.by_model: Counter[str] = Counter()

    @property
    def full(self) -> bool:
        return self.waiting >= self.most

    def enter(self, work: Work, name: str, each: float, force: bool = False) -> Place:
        """Room for a work, at ``each`` evaluations an image. Raises ApiError 429 unless ``force``."""
        number = pictures_of(work)
        if not force and (self.waiting + number > self.most or self.bytes + bytes_of(work) > BYTES):
            raise self.refused("queue_full", "Too many images wait here: try again in a while.")
        if not force and self.by_client[work.client] + number > self.most_client:
            raise self.refused(
                "rate_limit_exceeded", f"You have too many images waiting: {self.most_client} are the most."
            )
        return Place(self, work, name, each)

    def refused(self, code: str, message: str) -> ApiError:
        self.meters.refused[code] += 1
        return ApiError(429, message, code, headers={"Retry-After": str(self.wait())})

    def wait(self) -> int:
        """Seconds until what waits now is drawn, 1 to 120."""
        rate = self.rate.value()
        seconds = self.price / rate if rate else self.waiting * UNKNOWN_RATE
        return min(MOST_WAIT, max(LEAST_WAIT, math.ceil(seconds)))

    def made(self, place: Place, event: Event) -> None:
        self.rate.add(event.evaluations or place.each)
        self.meters.made(place.model, place.name, event)

    def _count(self, place: Place, number: int) -> None:
        self.waiting += number
        self.price = self.price + number * place.each if self.waiting else 0.0
        for counter, key in ((self.by_client, place.client), (self.by_model, place.model)):
            counter[key] += number
            if not counter[key]:
                del counter[key]
