"""Whether other programs held the processors while something was timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

from limner.inference.threads import processors

ENOUGH = 0.9  # share of the time of all its threads that a process must have been able to have
GLANCE = 0.2  # seconds in which that is seen
STAT = Path("/proc/stat")


class OtherLoad:
    """What other programs do from now on, on the processors that this process may use. It sees them on Linux alone."""

    def __init__(self) -> None:
        self._start, self._free = time.perf_counter(), _free()

    def is_busy(self, threads: int) -> bool:
        """Whether so many threads of this process could not have run all the time until now."""
        free, seconds = _free(), time.perf_counter() - self._start
        if free is None or self._free is None:
            return False
        return free - self._free < ENOUGH * seconds * min(threads, processors())


def is_busy_now(threads: int) -> bool:
    """As a glance of a fifth of a second shows."""
    other = OtherLoad()
    time.sleep(GLANCE)
    return other.is_busy(threads)


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _free() -> float | None:
    """Seconds that the processors were idle, or at work for this process; None: unknown."""
    wanted, idle, found = {f"cpu{number}" for number in _allowed()}, 0, 0
    try:
        for name, *times in map(str.split, STAT.read_text().splitlines()):
            if name in wanted:
                idle, found = idle + int(times[3]) + int(times[4]), found + 1
        return idle / os.sysconf("SC_CLK_TCK") + time.process_time() if found else None
    except (OSError, ValueError, IndexError):
        return None
