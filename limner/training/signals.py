"""Ctrl-C, SIGTERM and SIGHUP while a training runs."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

from limner.settings import Stopped

FOLDER_LOST = 1000  # above every signal: what processes tell one another where the run's folder is gone


class Signals:
    """Keeps the stop signal, so that the loop can finish its step and save; a second Ctrl-C exits at once."""

    def __enter__(self) -> Signals:
        # One that came before, whose exception was lost, as where Python's garbage collector calls back.
        self.caught = Stopped.received
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]  # SIGHUP: the terminal was closed
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as by nohup
            numbers.remove(signal.SIGHUP)
        try:
            self._before = {number: signal.signal(number, self._catch) for number in numbers}
        except ValueError:  # only the main thread receives signals
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _frame: Any) -> None:
        if self.caught and number == signal.SIGINT:
            with contextlib.suppress(OSError):  # a terminal that is gone
                os.write(2, b"\x1b[?25h\nStopped immediately. The last checkpoint is intact.\n")
            os._exit(128 + number)
        self.caught = number
