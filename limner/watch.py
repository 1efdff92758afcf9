"""Processes that wait for one another must notice when one is gone."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

SECOND = 1.0  # between two beats
SILENCE = 30  # seconds without a beat after which a process is taken for lost
ARRIVAL = 120  # the same for one that has not come yet: a busy machine may take so long to import torch
CONTINUE = "a training continues from its last checkpoint with --resume"
LOST = 2  # exit code


class Watch(threading.Thread):
    """Notices that another process has stopped or is gone, for which this one would wait for ever.

    Each process counts its seconds in the store and reads the count of the next one. It waits for so many of its own
    seconds, not for a time of the clock: where a whole machine was suspended, nobody is lost.
    """

    def __init__(self, store: dist.Store, rank: int, world: int):
        super().__init__(name="watch", daemon=True)
        self.store, self.rank, self.world = store, rank, world
        self.over = threading.Event()
        self.found = ""  # what is wrong
        self.alone = False  # the store is gone
        stays = "TORCHELASTIC_RUN_ID" in os.environ  # a shell may end before its commands
        self.started_by = os.getppid() if stays else 0

    def run(self) -> None:
        own, watched = self.rank, (self.rank + 1) % self.world
        last = silent = 0
        while not self.found and not self.over.wait(SECOND):
            if self.started_by and os.getppid() != self.started_by:
                self.alone, self.found = True, "The process that started the others is gone"
                break
            try:
                self.store.set(f"process of {own}", str(os.getpid()))
                self.store.add(f"seconds of {own}", 1)
                count = self.store.add(f"seconds of {watched}", 0)
            except RuntimeError:
                self.alone, self.found = True, "The process that the others meet at is gone"
                break
            silent = 0 if count != last else silent + 1
            last = count
            limit = SILENCE if count else ARRIVAL
            if silent >= limit:
                state = "gave no sign of life for" if count else "did not start within"
                self.found = f"Process {watched + 1} of {self.world} {state} {limit} s"
                self.end_stopped(watched)
        if self.over.wait(5 * SECOND):
            return  # the main thread has noticed, or all have finished
        if self.speaks():
            os.write(2, f"\x1b[?25h\nlimner: {self.reason()}\n".encode())
        os._exit(LOST)

    def end_stopped(self, rank: int) -> None:
        """End a process that SIGSTOP holds, if it is of this machine, which ends the wait for it at once."""
        with suppress(RuntimeError, OSError, ValueError):
            if self.store.check([f"process of {rank}"]):
                process = int(self.store.get(f"process of {rank}"))
                state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
                same_launcher = int(parent) == os.getppid()  # so it is of this job
                if state == "T" and same_launcher:
                    os.kill(process, signal.SIGKILL)

    def reason(self) -> str:
        """The sentence for the person."""
        others = f"process {self.rank + 1} of {self.world} ends too"
        return f"{self.found or 'Another process has ended'}, so {others}; {CONTINUE}."

    def is_of_lost_process(self, error: RuntimeError) -> bool:
        """Whether a collective failed because another process is gone."""
        text = str(error)
        known = isinstance(error, dist.DistNetworkError) or "onnection" in text or "Broken pipe" in text
        return bool(self.found or known)

    def speaks(self) -> bool:
        """Whether this process prints the error: no other process of the job has printed one."""
        if self.alone:
            return self.rank == 0
        try:
            return self.store.add("said", 1) == 1
        except RuntimeError:
            return self.rank == 0
