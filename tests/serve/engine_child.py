"""An engine's process without torch, for tests of the client: FD WAY FOLDER. It does what each prompt says."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from limner.serve.messages import Cancel, Card, Event, Frames, Ready, Report, Stop, Work, encode


def main(fd: int, way: str, folder: Path) -> None:
    line = socket.socket(fileno=fd)
    starts = len(list(folder.glob("start-*"))) + 1
    (folder / f"start-{starts}").write_text(str(os.getpid()))
    if way == "mistake":
        line.sendall(encode(Event(0, "failed", message="The run is damaged: restore a copy.")))
        sys.exit(2)
    if way == "crash":
        sys.exit(3)
    line.sendall(encode(Ready((Card("m", "toy", 8, 8, 3, ("draw",)),))))
    frames = Frames()
    while data := line.recv(2**20):
        for message in frames.feed(data):
            if isinstance(message, Stop):
                return
            if isinstance(message, Cancel):
                (folder / f"cancel-{message.work}").touch()
            if isinstance(message, Work):
                answer(line, message, starts, folder)


def answer(line: socket.socket, work: Work, starts: int, folder: Path) -> None:
    def say(kind: str, index: int = -1, **more: object) -> None:
        line.sendall(encode(Event(work.id, kind, index, **more)))

    (folder / f"work-{work.id}-{starts}").write_text(str(work.seconds))
    say("accepted", evaluations=8)
    if work.prompt == "wait":
        return
    say("begun")
    for i, seed in enumerate(work.seeds):
        for number in range(work.partials):
            say("partial", i, number=number, data=b"p")
        if i == 1 and (work.prompt == "die" or (work.prompt == "die once" and starts == 1)):
            time.sleep(0.05)  # what was said before is read
            os.kill(os.getpid(), signal.SIGKILL)
        say("image", i, seed=seed, data=b"%d" % seed)
    line.sendall(encode(Report("m", calls=3, rows={4: 3}, images=len(work.seeds))))
    say("ended")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
