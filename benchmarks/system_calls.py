"""Stops a forked function at its system calls (ptrace, Linux): to kill it there, or to let one of them fail.

The function marks a span with ``mark()`` before and after it; only system calls between the two marks are counted.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.restype = ctypes.c_long
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
TRACE_ME, PEEK_USER, POKE_USER, CONTINUE, SYSTEM_CALL, SET_OPTIONS = 0, 3, 6, 7, 24, 0x4200
MARKS_CALLS = 1  # option: stops at system calls are told from signals by 0x80
RETURNED, NUMBER = 8 * 10, 8 * 15  # of rax and orig_rax in the user area of x86-64
# Those that change files, of x86-64.
WRITING = {
    1: "write", 2: "open", 18: "pwrite64", 20: "writev", 40: "sendfile", 74: "fsync", 75: "fdatasync",
    77: "ftruncate", 82: "rename", 83: "mkdir", 86: "link", 257: "openat", 258: "mkdirat", 264: "renameat",
    265: "linkat", 285: "fallocate", 316: "renameat2", 326: "copy_file_range",
}  # fmt: skip


class Ended(NamedTuple):
    """How a traced function ended."""

    calls: int  # system calls within the marks, or those that write where one of them was to fail
    failed: str  # the name of the call that was made to fail
    code: int  # exit code, or minus the signal
    said: str  # what it wrote to stderr


def can_trace() -> bool:
    return sys.platform == "linux"


def can_fail() -> bool:
    return can_trace() and platform.machine() == "x86_64"


def mark() -> None:
    """The start or the end of the span whose calls count."""
    os.kill(os.getpid(), signal.SIGSTOP)


def fork(act: Callable[[], object], log: Path, traced: bool = False) -> int:
    """Run a function in a forked process with its stderr in a file; the number of the process."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 2)
        if traced:
            LIBC.ptrace(TRACE_ME, 0, None, None)
        act()
        code = 0
    except BaseException:  # the process must end here, whatever happens
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def trace(act: Callable[[], object], log: Path, kill_at: int = 0, fail_at: int = 0, error: int = 0) -> Ended:
    """Run ``act`` in a fork and kill it at a call of its marked span, or let a call that writes fail with ``error``.

    Calls are counted from 1; 0: neither.
    """
    process = fork(act, log, traced=True)
    inside, entering, calls, failed, failing = False, True, 0, "", False
    while True:
        _, status = os.waitpid(process, 0)
        if not os.WIFSTOPPED(status):
            break
        stopped, passed_on = os.WSTOPSIG(status), 0
        if stopped == signal.SIGSTOP:
            LIBC.ptrace(SET_OPTIONS, process, None, MARKS_CALLS)
            inside, entering = not inside, True
        elif stopped != signal.SIGTRAP | 0x80:
            passed_on = stopped
        elif inside and entering:
            number = LIBC.ptrace(PEEK_USER, process, NUMBER, None) if fail_at else 0
            calls += not fail_at or number in WRITING
            if kill_at and calls == kill_at:
                os.kill(process, signal.SIGKILL)
            if fail_at and calls == fail_at and number in WRITING:
                failed, failing = WRITING[number], True
                LIBC.ptrace(POKE_USER, process, NUMBER, -1)
            entering = False
        else:
            if failing:
                LIBC.ptrace(POKE_USER, process, RETURNED, -error)
                failing = False
            entering = True
        LIBC.ptrace(SYSTEM_CALL if inside else CONTINUE, process, None, passed_on)
    return Ended(calls, failed, os.waitstatus_to_exitcode(status), log.read_text("utf-8", "replace"))
