"""Files that are there whole or not at all, whatever ends the program meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from limner.settings import LimnerError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to that becomes ``path`` when all is written. Raises LimnerError where it cannot be."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LimnerError(f"{path} cannot be written ({reason}): make room, or name another place.") from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def write_text(path: Path, text: str) -> None:
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
