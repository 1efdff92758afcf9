"""What a training does every so often: checkpoints, sample sheets, held-out losses."""

from __future__ import annotations

import time
from collections.abc import Callable

from limner.config import parse_budget
from limner.training.loop import Loop


class Periodic:
    """Runs ``action`` every so many seconds or images; ``rest`` is the least pause, in units of its own duration."""

    def __init__(self, every: str, epoch: int, loop: Loop, action: Callable[[], object], rest: float = 0.0):
        self.budget = parse_budget(every, epoch)
        self.loop, self.action, self.rest, self.duration = loop, action, rest, 0.0
        self.last_seconds, self.last_seen = loop.seconds, loop.seen

    def run_if_due(self) -> None:
        seconds, seen = self.loop.seconds - self.last_seconds, self.loop.seen - self.last_seen
        if self.budget.spent(seconds, seen) < 1 or seconds < self.rest * self.duration:
            return
        start = time.perf_counter()
        self.action()
        self.duration = time.perf_counter() - start
        self.last_seconds, self.last_seen = self.loop.seconds, self.loop.seen
