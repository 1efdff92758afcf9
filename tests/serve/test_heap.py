"""All threads of a process that serves allocate from one heap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, sys, threading
from limner.serve.heap import share_one_heap
if sys.argv[1] == "shared":
    share_one_heap()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
together = threading.Barrier(4)
def allocate():
    together.wait()
    for _ in range(1000):
        library.malloc(10_000)
threads = [threading.Thread(target=allocate) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
library.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(library.fopen(sys.argv[2].encode(), b"w"))
library.malloc_info(0, file)
library.fclose(file)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_threads_share_one_heap(tmp_path: Path) -> None:
    counts = {}
    for kind in ("shared", "usual"):
        told = tmp_path / kind
        subprocess.run([sys.executable, "-c", SCRIPT, kind, str(told)], check=True, timeout=60)
        counts[kind] = told.read_text().count("<heap nr=")
    assert counts["shared"] == 1 < counts["usual"]
