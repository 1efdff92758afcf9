"""Files that are written completely or not at all, even if the program is killed; JSON read; a person's own files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from limner.settings import LimnerError

DEEPEST = 200  # levels of nesting in a JSON file; none that Limner writes has more than 20


class Damaged(LimnerError):
    """A file differs from what was written; an earlier one may be intact."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file to write to, which is renamed to ``path`` at the end. Raises LimnerError if that fails."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LimnerError(f"{path} cannot be written ({reason}): free space, or name another path.") from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def write_text(path: Path, text: str) -> None:
    with atomic(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


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


def refuse_other_files(folder: Path, flag: str, known: Collection[str] = ()) -> None:
    """Raises LimnerError if a folder holds anything but ``known`` and hidden files; ``flag`` names another folder."""
    paths = folder.iterdir() if folder.is_dir() else [folder] if folder.exists() else []
    others = sorted(path.name for path in paths if not path.name.startswith(".") and path.name not in known)
    if others:
        found = f"{folder} holds other files, such as {others[0]}"
        raise LimnerError(f"{found}: name an empty or a new folder with {flag}.")
