"""How many threads networks run on, on a CPU: measured again and again, since other work comes and goes.

The threads of one operation wait for the slowest. Where one core is busy with other work, an operation on all cores
waits for a thread that does not run, and takes ten times as long as on one core less.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from limner.device import pick_device
from limner.settings import LimnerError, ThreadCount

T = TypeVar("T")

SLOW = 2.0  # a unit that takes so many times what is usual is a reason to measure
GAIN = 1.2  # another number of threads must be so many times faster in a trial
SHARE = 0.02  # of the time that trials may take
PATROL = 20.0  # seconds between trials where all threads run and no unit was slow
REST = 12.0  # the most seconds between trials where fewer run; two of them lead back
LONG = 0.05  # seconds of a unit that is looked at while it runs
AGAIN = 1.0  # seconds until a unit that takes too long is looked at again
TRIAL = 0.02  # seconds of a trial, for each number of threads


class Controller:
    """Chooses the number of threads of each unit of work (a training step, a network call) by what it measures.

    ``trial(count)`` is the rate of a small fixed operation on so many threads. A trial is due at the start, after a
    slow unit, and from time to time. What it suggests is tried, and kept if the units themselves are not slower.
    """

    def __init__(
        self, most: int, trial: Callable[[int], float], clock: Callable[[], float] = time.perf_counter
    ):
        self.counts = [most]  # most, most // 2, ..., 1
        while self.counts[-1] > 1:
            self.counts.append(self.counts[-1] // 2)
        self.trial, self.clock = trial, clock
        self.count = most
        self._times: dict[Hashable, deque[float]] = {}  # the last units of each kind, seconds
        # Of the last units on this number of threads: seconds, in units of the shortest of the same kind.
        self._paces: deque[float] = deque(maxlen=9)
        self._before: tuple[int, float] | None = None  # the number left, and its pace; None: this one is kept
        self._rest, self._ups = 1.0, 0
        # Seconds to the next trial where all threads run: short at first, since a new process is favoured.
        self._patrol = 1.0
        self._last = -math.inf  # when the last trial ended
        self._due = -math.inf  # when the next one is due
        self._earliest = -math.inf  # for a trial because of a slow unit

    def choose(self) -> int:
        """The number of threads for the next unit."""
        if len(self.counts) > 1 and self.clock() >= self._due:
            self._measure()
        return self.count

    def took(self, kind: Hashable, seconds: float) -> None:
        """Learn what a unit of some kind took, on the number of threads that was chosen."""
        times = self._times.setdefault(kind, deque(maxlen=32))
        times.append(seconds)
        pace = seconds / max(min(times), 1e-9)
        usual = median(self._paces) if len(self._paces) >= 3 else None
        self._paces.append(pace)
        if self._before:
            self._judge(pace)
        elif self.count > 1 and usual and pace > SLOW * usual:
            self._due = min(self._due, self._earliest)

    def patience(self, kind: Hashable) -> float:
        """Seconds after which a unit takes too long; a second where none of its kind is known."""
        if kind not in self._times:
            return 1.0
        return SLOW * min(self._times[kind]) * (median(self._paces) if self._paces else 1.0)

    def late(self) -> int:
        """The number of threads for the rest of a unit that takes too long."""
        if len(self.counts) > 1 and self.clock() >= self._earliest:
            before = self.count
            self._measure()
            if self.count < before:
                self._before = None  # what the unit would have taken is not known
        return self.count

    def _measure(self) -> None:
        """Run a trial of each number of threads, and go on with the one that is faster."""
        start = self.clock()
        first = self._last == -math.inf
        rates = [{count: self.trial(count) for count in self.counts} for _ in range(3 if first else 1)]
        rate = {count: median(r[count] for r in rates) for count in self.counts}
        self._last = now = self.clock()
        cost = now - start
        best = max(self.counts, key=lambda count: rate[count])
        better = rate[best] > GAIN * rate[self.count]
        self._ups = self._ups + 1 if better and best > self.count else 0
        if first and better:
            self.count = best
        elif better and (best < self.count or self._ups >= 2):
            self._move(best)
        everything = self.count == self.counts[0]
        rest, most = (self._patrol, PATROL) if everything else (self._rest, REST)
        self._due = now + min(max(rest, cost / SHARE), most)
        if everything:
            self._patrol = min(2 * self._patrol, PATROL)
        self._earliest = now + cost / SHARE

    def _move(self, count: int) -> None:
        if self._paces:
            usual, last = median(self._paces), self._paces[-1]
            self._before = self.count, max(usual, last) if count < self.count else usual
        self.count, self._ups = count, 0
        self._paces.clear()

    def _judge(self, pace: float) -> None:
        """Go back to the number of threads that was left, if it was faster; its first unit may be slow for once."""
        assert self._before
        count, before = self._before
        limit = 3.0 if len(self._paces) == 1 else 1.1
        if pace > limit * before:
            self._move(count)
            self._before = None
            self._rest = min(2 * self._rest, REST)
            self._due = max(self._due, self.clock() + self._rest)
        elif len(self._paces) == 3:
            self._before, self._rest = None, 1.0


def processors() -> int:
    """How many processors this process may use, by its affinity and by the quota of its control group."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # "max", or -1: no quota
        if (group / "cpu.max").exists():
            quota, period = map(int, (group / "cpu.max").read_text().split())
        else:
            quota, period = (int((group / f"cpu/cpu.cfs_{n}_us").read_text()) for n in ("quota", "period"))
        count = min(count, math.ceil(quota / period)) if quota > 0 else count
    return max(count, 1)


def trial(count: int) -> float:
    """Operations a second on ``count`` threads: a sine of many numbers, again and again. Changes no random state."""
    torch.set_num_threads(count)
    with torch.inference_mode():
        x = torch.ones(processors() * 2**16)
        out = torch.empty_like(x)
        torch.sin(x, out=out)
        start, done, passed = time.perf_counter(), 0, 0.0
        while passed < TRIAL:
            torch.sin(x, out=out)
            done, passed = done + 1, time.perf_counter() - start
    return done / passed


class Threads:
    """The threads of this process, on which all its networks run. There is one: ``THREADS``."""

    def __init__(self) -> None:
        self.controller: Controller | None = None
        self.fixed = False
        self._within = self._hooks = False

    def check(self, wanted: ThreadCount, flag: str) -> None:
        """Raises LimnerError for more threads than processors."""
        if wanted != "auto" and wanted > processors():
            raise LimnerError(
                f"{flag} {wanted} is more than the processors here, {processors()}: choose fewer, or auto."
            )

    def use(self, wanted: ThreadCount, flag: str = "--threads") -> None:
        """From now on use so many threads, or for auto what is measured. Raises LimnerError as ``check`` does."""
        self.check(wanted, flag)
        self.fixed = wanted != "auto"
        if wanted != "auto":
            torch.set_num_threads(wanted)

    @contextmanager
    def at_work(self, device: torch.device | None = None, hooks: bool = True) -> Iterator[None]:
        """Networks run in this block: choose the number of threads, and set it back behind the block.

        ``hooks`` are needed within long units; a compiled network would be compiled again for them.
        """
        before = torch.get_num_threads()
        if self._within or self.fixed or (device or pick_device()).type != "cpu":
            yield
            return
        most = min(before, processors())
        if self.controller is None or self.controller.counts[0] != most:
            self.controller = Controller(most, trial)
        self._within, self._hooks = True, hooks
        try:
            self._set(self.controller.choose())
            yield
        finally:
            self._within = False
            torch.set_num_threads(before)

    @contextmanager
    def keep(self, count: int) -> Iterator[None]:
        """Use ``count`` threads in this block, whatever else runs."""
        before, fixed = torch.get_num_threads(), self.fixed
        self.fixed = True
        torch.set_num_threads(count)
        try:
            yield
        finally:
            self.fixed = fixed
            torch.set_num_threads(before)

    @contextmanager
    def unit(self, kind: Hashable) -> Iterator[None]:
        """One unit of work of some kind; those of a kind take about as long as one another."""
        controller = self.controller
        if not self._within or self.fixed or controller is None or len(controller.counts) == 1:
            yield
            return
        self._set(controller.choose())
        start, patience = time.perf_counter(), controller.patience(kind)
        with self._watched(start + patience) if self._hooks and patience > LONG else nullcontext():
            yield
        controller.took(kind, time.perf_counter() - start)

    @contextmanager
    def _watched(self, deadline: float) -> Iterator[None]:
        """Choose the threads again within a unit that is not over by a deadline, between two operations of a module.

        Other work that begins would else make one long step twenty times longer.
        """

        def look(*_: object) -> None:
            nonlocal deadline
            if (now := time.perf_counter()) > deadline and self.controller:
                deadline = now + AGAIN
                self._set(self.controller.late())

        def forward(module: nn.Module, inputs: object, output: object) -> None:
            look()
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(look)  # in the backward pass

        handle = register_module_forward_hook(forward)
        try:
            yield
        finally:
            handle.remove()
            deadline = math.inf  # a graph may outlive the unit

    def each(self, items: Iterable[T], kind: Hashable) -> Iterator[T]:
        """The items for a loop whose body is a unit of work."""
        for item in items:
            with self.unit(kind):
                yield item

    def units(self, work: Iterable[T], kind: Hashable) -> Iterator[T]:
        """The items of an iterator that does a unit of work for each."""
        items = iter(work)
        while True:
            with self.unit(kind):
                item = next(items, None)
            if item is None:
                return
            yield item

    def measured(self) -> int:
        """The number of threads that a trial now chooses."""
        if not self.fixed:
            self.controller = None  # what it learned may be old
            with self.at_work(torch.device("cpu")):
                return torch.get_num_threads()
        return torch.get_num_threads()

    def _set(self, count: int) -> None:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)


THREADS = Threads()
