"""How glibc keeps the memory of a process that runs for days."""

from __future__ import annotations

import contextlib
import ctypes


def share_one_heap() -> None:
    """Have glibc give all threads of this process the same heap; to be called before there are others.

    Else each thread has its own, and what one frees is of no use to another: a process that runs for days grows.
    Elsewhere this does nothing.
    """
    arena_max = -8  # a parameter of mallopt(3)
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(arena_max, 1)
