"""What the path of an image says of it: its class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

SPLITS = frozenset(("train", "training", "test", "val", "valid", "validation"))


def labels_of(names: Sequence[str]) -> list[str | None]:
    """The class of each image: the folders that it lies in, but for a first one that names a split."""
    tops = {PurePosixPath(name).parts[0] for name in names if "/" in name}
    drop = 1 if tops and tops <= SPLITS and all("/" in name for name in names) else 0
    return ["/".join(PurePosixPath(name).parts[drop:-1]) or None for name in names]
