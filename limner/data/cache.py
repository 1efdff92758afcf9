"""The cache of packed data: one folder a packing, `array.npy` and `index.json`, which appears by one rename."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from limner.core import ImageSpec
from limner.data.dataset import Data
from limner.data.items import Problem
from limner.data.rows import PackedArray
from limner.files import Damaged, parse_json

_STALE = 86_400  # seconds after which an unfinished packing counts as abandoned


def load(folder: Path) -> Data | None:
    """The data packed in a folder; None if there is none. Raises Damaged."""
    try:
        content = (folder / "index.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _damaged(folder, f"index.json: {error.strerror}") from None
    index = parse_json(content, f"The packed data in {folder}")
    try:
        if "digest" not in index:  # earlier versions also read some sources in another way
            raise Damaged(f"The packed data in {folder} is of an earlier version of Limner.")
        if not _is_sealed(content):
            raise _damaged(folder, "index.json has other bytes than were packed")
        return _data(index, PackedArray(folder / "array.npy", index["blocks"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _damaged(folder, "index.json has other entries than are packed") from None


def sealed(index: dict[str, Any]) -> str:
    """The content of an index.json: the index with a digest of itself as its last entry."""
    content = json.dumps(index)[:-1]
    return f'{content}, "digest": "{_digest(content.encode())}"}}'


def _is_sealed(content: bytes) -> bool:
    """Whether the content of an index.json is as `sealed` makes it."""
    found = re.search(rb', "digest": "(\w{32})"\}$', content[-100:])
    return found is not None and _digest(content[: -len(found[0])]) == found[1].decode()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint_of(shape: Sequence[int], index: dict[str, Any]) -> hashlib.blake2b:
    """The start of a packing's fingerprint, to be updated with the pixels."""
    facts = [
        shape,
        index["spec"],
        index["labels"],
        index["captions"],
        *filter(None, [index.get("splits"), index.get("clips")]),
    ]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)


def _data(index: dict[str, Any], pixels: PackedArray) -> Data:
    """Raises KeyError, TypeError or ValueError where the index is not one that is packed."""
    classes, clips = _texts(index["spec"]["classes"]), index.get("clips")
    n = len(pixels) if clips is None else len(_texts(index["names"]))
    spec = ImageSpec(**{**index["spec"], "classes": tuple(classes), "bits": 8 * pixels.dtype.itemsize})
    counts = _numbers(index.get("sources", [n]), n + 1)  # images of each source, one after another
    names, labels, captions = _texts(index["names"], n), index["labels"], index["captions"]
    if pixels.shape[1:] != (spec.height, spec.width, spec.channels) or sum(counts) != n:
        raise ValueError
    rows, strides = (np.arange(n), None) if clips is None else _clips(clips, n, spec.frames, len(pixels))
    return Data(
        spec,
        _texts([index["fingerprint"]])[0],
        pixels,
        rows,
        names,
        None if labels is None else np.array(_numbers(labels, len(classes), n, least=-1), np.int64),
        None if captions is None else _texts(captions, n),
        [Problem(*_texts(problem, 2)) for problem in index["problems"]],
        source=np.repeat(np.arange(len(counts)), counts),
        notes=_texts(index.get("notes", [])),
        splits=None if index.get("splits") is None else _texts(index["splits"], n),
        sizes=_sizes(index["sizes"], n) if "sizes" in index else None,
        own=tuple(_numbers(index["own"], 2**31, 2, least=1)) if "own" in index else None,  # type: ignore[arg-type]
        strides=strides,
    )


def _clips(values: Any, n: int, frames: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """[n] rows of the first frames of clips, and [n] strides."""
    first, stride = (np.array(_numbers(values[key], rows + 1, n), np.int64) for key in ("first", "stride"))
    if not n or (first + (frames - 1) * stride).max() >= rows:
        raise ValueError
    return first, stride


def _texts(values: Any, count: int | None = None) -> list[str]:
    if not isinstance(values, list) or len(values) != (len(values) if count is None else count):
        raise ValueError
    if not all(isinstance(value, str) for value in values):
        raise ValueError
    return values


def _numbers(values: Any, below: int, count: int | None = None, least: int = 0) -> list[int]:
    if not isinstance(values, list) or len(values) != (len(values) if count is None else count):
        raise ValueError
    if not all(type(value) is int and least <= value < below for value in values):
        raise ValueError
    return values


def _sizes(values: Any, count: int) -> np.ndarray:
    """[count, 2] heights and widths."""
    sizes = np.array(values)
    if sizes.shape != (count, 2) or sizes.dtype.kind != "i" or sizes.min() < 1:
        raise ValueError
    return sizes


def _damaged(folder: Path, reason: str) -> Damaged:
    return Damaged(f"The packed data in {folder} is damaged: {reason}.")


@contextmanager
def unfinished(packed: Path) -> Iterator[Path]:
    """A folder to write in, removed afterwards unless it was renamed."""
    packed.mkdir(parents=True, exist_ok=True)
    for path in packed.glob("unfinished-*"):  # left behind by killed processes
        with suppress(OSError):  # another process may be faster
            if time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix="unfinished-", dir=packed))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(scratch: Path, folder: Path) -> None:
    """Renames into place, unless another process has put the same there first."""
    for _ in range(3):
        try:
            os.rename(scratch, folder)
            return
        except OSError:
            with suppress(Damaged):
                if load(folder) is not None:
                    return
            if not folder.exists():
                raise
            damaged = tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent)
            os.rename(folder, damaged)
            shutil.rmtree(damaged, ignore_errors=True)
