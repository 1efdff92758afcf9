"""Files that are written completely or not at all, even if the program is killed; folders of a person's own files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from limner.settings import LimnerError


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


def refuse_other_files(folder: Path, flag: str, known: Collection[str] = ()) -> None:
    """Raises LimnerError if a folder holds anything but ``known`` and hidden files; ``flag`` names another folder."""
    paths = folder.iterdir() if folder.is_dir() else [folder] if folder.exists() else []
    others = sorted(path.name for path in paths if not path.name.startswith(".") and path.name not in known)
    if others:
        found = f"{folder} holds other files, such as {others[0]}"
        raise LimnerError(f"{found}: name an empty or a new folder with {flag}.")
