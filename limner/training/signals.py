"""Ctrl-C and SIGTERM while a training runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Signals:
    """Remembers the signal that asked to stop, so that the loop can finish its step and save; a second Ctrl-C exits."""

    def __init__(self) -> None:
        self.caught = 0

    def _catch(self, number: int, _frame: Any) -> None:
        if self.caught and number == signal.SIGINT:
            os.write(2, b"\x1b[?25h\nStopped immediately. The last checkpoint is intact.\n")
            os._exit(130)
        self.caught = number

    @contextmanager
    def watch(self) -> Iterator[Signals]:
        try:
            before = {s: signal.signal(s, self._catch) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # only the main thread receives signals
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
