"""Where things lie in a run's folder, and the lock that one training holds on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from limner import files
from limner.checkpoint.model_file import MODEL
from limner.settings import LimnerError

LIVE, STATE = "live.safetensors", "state.json"
CHECKPOINTS, LOCK = "checkpoints", ".lock"


def exists(run_dir: str | Path) -> bool:
    """Whether a folder holds a checkpoint or a model file."""
    return (Path(run_dir) / MODEL).exists() or bool(checkpoints(Path(run_dir)))


def folder_of(run: str | Path) -> Path:
    """The folder of a run that is named by its folder or by a file in it, such as model.safetensors."""
    return Path(run) if Path(run).is_dir() else Path(run).parent


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, newest first."""
    root = run / CHECKPOINTS
    found = root.iterdir() if root.is_dir() else ()
    return sorted((f for f in found if re.fullmatch(r"\d+(\.\d+)?", f.name)), key=order, reverse=True)


def order(checkpoint: Path) -> tuple[int, int]:
    """Images seen, and the number of earlier checkpoints with as many."""
    seen, _, again = checkpoint.name.partition(".")
    return int(seen), int(again or 0)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Lock(NamedTuple):
    """A run's folder while this process alone may write to it."""

    folder: Path
    descriptor: int  # of the lock file

    def is_lost(self) -> bool:
        """Whether the folder was renamed, removed or replaced since; takes some microseconds."""
        try:
            found, held = os.stat(self.folder / LOCK), os.fstat(self.descriptor)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino)


@contextlib.contextmanager
def lock(run_dir: str | Path, flag: str = "--out") -> Iterator[Lock]:
    """Lock a run's folder against a second training. Raises a LimnerError that names the process that has the lock.

    ``flag`` is the option that names another folder. What a killed process left unfinished in this one is removed.
    """
    folder = Path(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+")  # noqa: SIM115
    except OSError as error:
        raise LimnerError(
            f"Cannot write to {folder} ({files.reason_of(error, folder)[1]}): choose another {flag}."
        ) from error
    with contextlib.closing(file):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise LimnerError(
                f"{folder} is in use by {holder}: wait for it, stop it, or choose another {flag}."
            ) from None
        try:
            os.ftruncate(file.fileno(), 0)
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            os.write(
                file.fileno(), f"process {os.getpid()} on {socket.gethostname()} since {started}\n".encode()
            )
        except OSError as error:
            raise LimnerError(
                f"{folder / LOCK} cannot be written ({error.strerror}): free space, or choose another {flag}."
            ) from error
        _clear_unfinished(folder)
        try:
            yield Lock(folder, file.fileno())
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), 0)


def _clear_unfinished(folder: Path) -> None:
    """Remove the temporary files of processes that were killed: of ``files.atomic``, and unfinished checkpoints."""
    for place in (folder, folder / "samples"):
        files.clear_unfinished(place, own=True)
    for path in folder.glob(f"{CHECKPOINTS}/.tmp-*"):  # only the holder of the lock makes them
        remove(path)
