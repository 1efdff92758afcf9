"""The cache of packed data: one folder a packing, `array.npy` and `index.json`, which appears by one rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from limner.core import ImageSpec
from limner.data.dataset import Data
from limner.data.sources import Problem
from limner.settings import DataOptions

_STALE = 86_400  # seconds after which an unfinished packing counts as abandoned


def cache_folder(options: DataOptions) -> Path:
    return Path(options.cache or os.environ.get("LIMNER_CACHE") or "~/.cache/limner").expanduser()


def load(folder: Path) -> Data | None:
    """The data packed in a folder; None if there is none, or it is damaged."""
    try:
        index = json.loads((folder / "index.json").read_text("utf-8"))
        pixels = np.load(folder / "array.npy", mmap_mode="r", allow_pickle=False)
        bits = 8 * pixels.dtype.itemsize
        spec = ImageSpec(**{**index["spec"], "classes": tuple(index["spec"]["classes"]), "bits": bits})
        counts = index.get("sources", [len(pixels)])  # images of each source, one after another
        if not len(pixels) == len(index["names"]) == sum(counts) or pixels.shape[-1] != spec.channels:
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Data(
        spec,
        index["fingerprint"],
        np.asarray(pixels),  # still mapped; indexing np.memmap itself is slower
        np.arange(len(pixels)),
        index["names"],
        None if index["labels"] is None else np.array(index["labels"], np.int64),
        index["captions"],
        [Problem(*problem) for problem in index["problems"]],
        source=np.repeat(np.arange(len(counts)), counts),
        notes=index.get("notes", []),
    )


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
            if load(folder) is not None:
                return
            if not folder.exists():
                raise
            damaged = tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent)
            os.rename(folder, damaged)
            shutil.rmtree(damaged, ignore_errors=True)
