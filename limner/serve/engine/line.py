"""The engine's end of the socket to the front: one thread reads, one writes, and neither keeps the networks waiting."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

from limner.serve.messages import Frames, Message, encode

GRACE = 2.0  # seconds in which the engine ends by itself once the front is gone; then it is ended
UNSENT = 256  # messages that may wait to be sent; with more, networks wait too


class Line:
    """``arrived`` holds what the front says, then None once it is gone. What others put there comes in turn."""

    def __init__(self, connection: socket.socket):
        self.arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.gone = threading.Event()  # the front has ended, or was never there
        self._connection, self._over = connection, threading.Event()
        self._unsent: queue.Queue[Message | Callable[[], Message] | None] = queue.Queue(UNSENT)
        self._threads = [
            threading.Thread(target=work, name=f"line {work.__name__}", daemon=True)
            for work in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: Message | Callable[[], Message]) -> None:
        """Messages go in order; one that is made by a function is made in the thread that sends it."""
        self._unsent.put(message)

    def close(self) -> None:
        """Send what waits, and end both threads."""
        self._over.set()
        self._unsent.put(None)
        self._threads[1].join()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._connection.close()

    def _read(self) -> None:
        frames = Frames()
        with contextlib.suppress(OSError):
            while data := self._connection.recv(2**20):
                for message in frames.feed(data):
                    self.arrived.put(message)
        self.gone.set()
        self.arrived.put(None)
        if not self._over.wait(GRACE):  # a network call takes long, and nobody waits for it
            os._exit(1)

    def _write(self) -> None:
        while message := self._unsent.get():
            if self.gone.is_set():
                continue
            with contextlib.suppress(OSError):  # the thread that reads notices it too
                self._connection.sendall(encode(message() if callable(message) else message))
