"""Processes that wait for one another must notice when one is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch.distributed as dist

SECOND = 1.0  # between two beats
SILENCE = 30  # seconds without a beat after which a process is taken for lost
ARRIVAL = 120  # the same for one that has not come yet: a busy machine may take so long to import torch
CONTINUE = "a training continues from its last checkpoint with --resume"
LOST = 2  # exit code
MEET = "LIMNER_MEET"  # environment variable of a helper process: JSON of [port, rank, world]


@dataclass
class Helpers:
    """The processes that this one has started, and what they write to stderr."""

    errors: IO[bytes]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ended(self, wait: float = 0) -> list[int]:
        """The exit codes of those that have ended, within ``wait`` seconds each."""
        for helper in self.started:
            with suppress(subprocess.TimeoutExpired):
                helper.wait(wait)
        return [helper.returncode for helper in self.started if helper.returncode is not None]

    def reason(self) -> str:
        """Why they ended: the signal, or the last line that they wrote."""
        for code in self.ended(wait=2):
            if code < 0:
                memory = " (perhaps memory ran out)" if code == -signal.SIGKILL else ""
                return f"A helper process was ended by {signal.Signals(-code).name}{memory}"
        written = os.pread(self.errors.fileno(), 1_000_000, 0).decode(errors="replace").strip()
        last = written.rpartition("\n")[2].removeprefix("limner: ")
        return f"A helper process ended{f' ({last})' if last else ''}"

    def kill(self) -> None:
        for helper in self.started:
            helper.kill()


class Watch(threading.Thread):
    """Notices that another process has stopped or is gone, for which this one would wait for ever.

    Each process counts its seconds in the store and reads the count of the next one. It waits for so many of its own
    seconds, not for a time of the clock: where a whole machine was suspended, nobody is lost.
    """

    def __init__(self, store: dist.Store, rank: int, world: int, helpers: Helpers | None):
        super().__init__(name="watch", daemon=True)
        self.store, self.rank, self.world, self.helpers = store, rank, world, helpers
        self.over = threading.Event()
        self.found = ""  # what is wrong
        self.alone = False  # the store is gone
        stays = (
            MEET in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
        )  # a shell may end before its commands
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
            elif self.helpers and self.helpers.ended():
                self.found = self.helpers.reason()
        if self.over.wait(5 * SECOND):
            return  # the main thread has noticed, or all have finished
        if self.speaks():
            os.write(2, f"\x1b[?25h\nlimner: {self.reason()}\n".encode())
        os._exit(LOST)

    def end_stopped(self, rank: int) -> None:
        """End a process that SIGSTOP holds, if it is of this machine, which ends the wait for it at once."""
        if self.helpers:
            self.helpers.kill()
            return
        with suppress(RuntimeError, OSError, ValueError):
            if self.store.check([f"process of {rank}"]):
                process = int(self.store.get(f"process of {rank}"))
                state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
                same_launcher = int(parent) == os.getppid()  # so it is of this job
                if state == "T" and same_launcher:
                    os.kill(process, signal.SIGKILL)

    def reason(self) -> str:
        """The sentence for the person."""
        found = self.found or (self.helpers.reason() if self.helpers else "")
        others = f"process {self.rank + 1} of {self.world} ends too"
        return f"{found or 'Another process has ended'}, so {others}; {CONTINUE}."

    def is_of_lost_process(self, error: RuntimeError) -> bool:
        """Whether a collective failed because another process is gone."""
        text = str(error)
        known = isinstance(error, dist.DistNetworkError) or "onnection" in text or "Broken pipe" in text
        return bool(self.found or known or (self.helpers and self.helpers.ended(wait=2)))

    def speaks(self) -> bool:
        """Whether this process prints the error: no other process of the job has printed one."""
        if self.alone:
            return self.rank == 0
        try:
            return self.store.add("said", 1) == 1
        except RuntimeError:
            return self.rank == 0
