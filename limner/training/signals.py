"""Ctrl-C and SIGTERM while a training runs."""

from __future__ import annotations

import os
import signal
from typing import Any


class Signals:
    """Keeps the stop signal, so that the loop can finish its step and save; a second Ctrl-C exits at once."""

    caught = 0

    def __enter__(self) -> Signals:
        try:
            self._before = {s: signal.signal(s, self._catch) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # only the main thread receives signals
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _frame: Any) -> None:
        if self.caught and number == signal.SIGINT:
            os.write(2, b"\x1b[?25h\nStopped immediately. The last checkpoint is intact.\n")
            os._exit(130)
        self.caught = number
