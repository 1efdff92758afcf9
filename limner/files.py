"""Files that are written completely or not at all, even if the program is killed; JSON read; a person's own files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from limner.settings import LimnerError

DEEPEST = 200  # levels of nesting in a JSON file; none that Limner writes has more than 20


class Damaged(LimnerError):
    """A file differs from what was written; an earlier one may be intact."""


# Errors -------------------------------------------------------------------------------------------------

_FREE, _PERMIT = "free space, or name another path", "change its permissions, or name another path"
_ADVICE = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "name a path where larger files are allowed",
    errno.EACCES: _PERMIT,
    errno.EPERM: _PERMIT,
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ENOENT: "name a path that exists",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}  # of any other reason: name another path


def explain(error: Exception, path: Path | None = None, what: str = "be written") -> str:
    """One sentence: which file cannot ``what``, why, and what to do. ``path``: that of the error itself, if None."""
    number, reason = reason_of(error, path)
    name = path if path is not None else getattr(error, "filename", None)
    subject = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else "A file"
    return f"{subject} cannot {what} ({reason}): {_ADVICE.get(number, 'name another path')}."


def reason_of(error: Exception, path: Path | None = None) -> tuple[int, str]:
    """The number of an error of the system (0: it is another's), and its words; ``path`` is what it is about."""
    number, reason = getattr(error, "errno", None) or 0, getattr(error, "strerror", None) or str(error)
    if match := re.search(r"\(os error (\d+)\)", reason):  # of a library that is not written in Python
        number, reason = int(match[1]), os.strerror(int(match[1]))
    if path is not None and number in (errno.ENOTDIR, errno.EEXIST):
        files_among = [str(parent) for parent in (path, *path.parents) if _is_other(parent)]
        if files_among:
            reason = f"{files_among[-1]} is not a folder"
    return number, reason


def _is_other(path: Path) -> bool:
    """Whether something is there that is not a folder."""
    return os.path.lexists(path) and not os.path.isdir(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises LimnerError with the true reason where ``path`` cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise LimnerError(explain(error, path)) from error


def check_writable(path: Path, folder: bool = False) -> None:
    """Raises LimnerError if no file, or no folder, can be written at ``path``: to be called before long work."""
    with writing(path):
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long, a file among the folders
        if folder and _is_other(path):
            raise OSError(errno.EEXIST, "it is not a folder")
        if not folder and os.path.lexists(path) and not os.path.isfile(path):
            what = "a folder" if os.path.isdir(path) else "not a file"
            raise OSError(errno.EISDIR, f"it is {what}")
        if not folder and os.path.isfile(path) and not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, "it is read-only")
        place = path if folder else path.parent
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        if not os.access(place, os.W_OK | os.X_OK):
            reason = errno.EROFS if os.access(place, os.R_OK) and _is_read_only(place) else errno.EACCES
            raise OSError(reason, f"{place}: {os.strerror(reason)}")


def _is_read_only(place: Path) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def cache_folder(named: str = "") -> Path:
    """The folder of what can be made again: the one that is named, else $LIMNER_CACHE or ~/.cache/limner."""
    return Path(named or os.environ.get("LIMNER_CACHE") or "~/.cache/limner").expanduser()


# Writing ------------------------------------------------------------------------------------------------


@dataclass
class _Together:
    """What was written within ``together``."""

    files: dict[Path, Path] = field(default_factory=dict)  # path -> the temporary file
    folders: list[Path] = field(default_factory=list)  # that were made for them


_together: ContextVar[_Together | None] = ContextVar("together", default=None)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file to write to, which is renamed to ``path`` at the end. Raises LimnerError if that fails.

    It lies in a hidden folder beside ``path``, with what a library puts beside it. Folders are made as needed. What
    an earlier process left when it was killed is removed.
    """
    made: list[Path] = []
    scratch, waiting, done = _beside(path), _together.get(), False
    unfinished = scratch / path.name
    try:
        with writing(path):
            check_writable(path)
            made = _make_folder(path.parent)
            clear_unfinished(path.parent, re.escape(path.name[:50]))
            scratch.mkdir(exist_ok=True)
            yield unfinished
            sync(unfinished)
            if waiting is None:
                os.replace(unfinished, path)
            else:
                waiting.files[path] = unfinished
                waiting.folders += made
        done = True
    finally:
        if waiting is None or not done:
            _discard([scratch], [] if done else made)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """The files that are written inside appear at the end, in that order: all, or none where something fails."""
    if _together.get() is not None:
        yield
        return
    waiting = _Together()
    token, done = _together.set(waiting), False
    try:
        yield
        with uninterrupted():
            for path, unfinished in waiting.files.items():
                with writing(path):
                    os.replace(unfinished, path)
        done = True
    finally:
        _together.reset(token)
        _discard(
            [unfinished.parent for unfinished in waiting.files.values()], [] if done else waiting.folders
        )


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which is renamed to ``path`` at the end: new, or in the place of an empty one.

    Raises LimnerError if that fails.
    """
    made: list[Path] = []
    scratch, done = _beside(path), False
    try:
        with writing(path):
            check_writable(path, folder=True)
            made = _make_folder(path.parent)
            clear_unfinished(path.parent, re.escape(path.name[:50]))
            _discard([scratch], [])
            scratch.mkdir()
            yield scratch
            for file in scratch.rglob("*"):
                sync(file)
            os.rename(scratch, path)
        done = True
    finally:
        _discard([scratch], [] if done else made)


def _beside(path: Path) -> Path:
    """The name of what this process writes before it is ``path``, short enough where that of ``path`` is."""
    if not path.name:
        raise LimnerError(f"{path} cannot be written: name a file.")
    return path.with_name(f".{path.name[:50]}.{os.getpid()}.tmp")


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; the new ones, the deepest first."""
    missing = [f for f in (folder, *folder.parents) if not os.path.lexists(f)]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def clear_unfinished(folder: Path, name: str = ".+", own: bool = False) -> None:
    """Remove what processes that have ended were writing there, to files whose names begin as the pattern says.

    ``own``: also what an ended process with the number of this one was writing, as in a container.
    """
    for entry in os.scandir(folder) if folder.is_dir() else ():
        if match := re.fullmatch(rf"\.{name}\.(\d+)\.tmp", entry.name):
            process = int(match[1])
            if not _runs(process) or (own and process == os.getpid()):
                _discard([Path(entry.path)], [])


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill leaves it whole, or a hidden one that the next writer of ``path`` removes."""
    scratch = _beside(path)
    with writing(path):
        os.rename(path, scratch)
    _discard([scratch], [])


def _discard(scratch: list[Path], folders: list[Path]) -> None:
    """Remove temporary files and folders, and those ``folders`` that are empty."""
    for path in scratch:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP until this is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = {number: signal.signal(number, lambda late, frame: caught.append(late)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in caught:
            signal.raise_signal(late)


def write_text(path: Path, text: str) -> None:
    """Text in UTF-8; lone surrogates, as in a file name of other bytes, become an escape (that of JSON)."""
    with atomic(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    with atomic(path) as unfinished:
        unfinished.write_bytes(content)


def write_synced(contents: Mapping[Path, bytes]) -> None:
    """Write several files, each flushed to the disk, many at a time: alone each waits for it. Not atomic.

    A signal waits for the threads, which would go on to write after it.
    """

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(contents[path])
            file.flush()
            os.fsync(file.fileno())

    with uninterrupted(), ThreadPoolExecutor(16) as threads:
        for written in [threads.submit(write, path) for path in contents]:
            written.result()


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


# Reading ------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The JSON table in a file. Raises Damaged for any other content, and OSError as for a missing file."""
    return parse_json(path.read_bytes(), path)


def parse_json(text: str | bytes, where: object) -> dict[str, Any]:
    """The JSON table in a text or in UTF-8; ``where`` names its place. Raises Damaged for anything else."""
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where} is damaged: it cannot be read as JSON ({error}).") from None
    if not isinstance(value, dict) or _is_deeper(value, DEEPEST):
        raise Damaged(f"{where} is damaged: it is not a JSON table of names and values.")
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether JSON is nested deeper than ``limit`` levels, at which code that follows it may end in RecursionError."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for entry in level
            if isinstance(entry, (dict, list))
            for inner in (entry.values() if isinstance(entry, dict) else entry)
        ]
    return bool(level)


def set_aside(path: Path) -> Path:
    """Rename a file that cannot be used, which may be a person's own, to NAME.damaged, NAME.damaged.2, ..."""
    aside, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged.{number}")
    with writing(aside):
        os.rename(path, aside)
    return aside


def refuse_to_replace(path: Path, read: Iterable[str | Path], beside: Path | None = None) -> None:
    """Raises LimnerError where a file to write is one of those that the command reads.

    A file that goes ``beside`` a named one is refused too where it is there without that: somebody else's.
    """
    if not path.exists():
        return
    if any(os.path.exists(other) and os.path.samefile(path, other) for other in read):
        raise LimnerError(f"{path} is read here and would be replaced: name another file with --to.")
    if beside and not beside.exists():
        raise LimnerError(f"{path} exists already and would be replaced, beside {beside}: name another --to.")


def refuse_other_files(folder: Path, flag: str, known: Collection[str] = ()) -> None:
    """Raises LimnerError if a folder holds anything but ``known`` and hidden files; ``flag`` names another folder."""
    paths = folder.iterdir() if folder.is_dir() else [folder] if folder.exists() else []
    others = sorted(path.name for path in paths if not path.name.startswith(".") and path.name not in known)
    if others:
        found = f"{folder} holds other files, such as {others[0]}"
        raise LimnerError(f"{found}: name an empty or a new folder with {flag}.")


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
