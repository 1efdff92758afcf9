"""`limner serve`: runs over HTTP, as the OpenAI Images API has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from limner.commands.options import Flag, Repeated, parse
from limner.serve.options import ServeOptions, named_runs
from limner.settings import LimnerError, nearest, need

Runs = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...", help_behavior_hint="")
]
ENGINE = "LIMNER_ENGINE"  # in the environment of the engine's process: the number of its socket to the front
EXTRA = "starlette", "uvicorn", "httptools", "python_multipart"


@dataclass(frozen=True, kw_only=True)
class Options(ServeOptions):
    """Answer the OpenAI Images API on this machine, for one run or several: any OpenAI client draws with them.

    Clients need base_url http://127.0.0.1:8000/v1 and any api_key. Ctrl-C ends it; jobs that wait are kept.
    """

    # folders of runs. A run's model id is its folder's name, or the one in ID=RUN, which may hold /
    runs: Runs = ()
    host_name: Repeated = ()  # name by which clients reach this server, beside those of this machine
    # draw other sizes than a run's own too, enlarged or reduced from it, rather than refuse them
    resize: Flag = False


def run(argv: list[str]) -> int:
    socket = os.environ.pop(ENGINE, "")
    if socket:  # what the front does about a signal is the engine's too
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    options = ServeOptions.of(parse(Options, argv, "serve", use_threads=False))
    runs = named_runs(options.runs)
    for path in runs.values():
        _check_run(path)
    if socket:
        from limner.serve.engine import process

        return process.run(int(socket), options)
    for module in EXTRA:
        need(module, "The server needs the serve extra", "serve")
    from limner.serve.http.server import serve

    return serve(options, runs, spawn)


def spawn(socket: int) -> subprocess.Popen[bytes]:
    """The engine: the same command line in a process of its own, which talks to this one through ``socket``.

    It is in a process group of its own: Ctrl-C is for the front, which lets the engine finish what it does.
    """
    environment = {**os.environ, ENGINE: str(socket)}
    command = [sys.executable, *sys.orig_argv[1:]]
    return subprocess.Popen(
        command, env=environment, pass_fds=(socket,), stdin=subprocess.DEVNULL, process_group=0
    )


def _check_run(path: str) -> None:
    """Raises LimnerError unless a model lies there, as far as names say; the engine reads it."""
    folder = Path(path)
    if folder.is_file() or (folder / "model.safetensors").is_file() or (folder / "checkpoints").is_dir():
        return
    beside = [str(entry) for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
    hint = nearest(path, beside) or " Train one first: limner train."
    raise LimnerError(f"There is no run at {path!r}.{hint}")
