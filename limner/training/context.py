"""Where a training runs, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from limner import checkpoint
from limner.distributed import Ranks
from limner.settings import LimnerError


@dataclass(frozen=True)
class Result:
    """How a training ended."""

    out: Path
    seen: int
    seconds: float
    images_per_second: float
    stopped: int = 0  # the signal that ended it early, or 0
    terms: dict[str, float] = field(default_factory=dict)  # the last held-out losses
    noun: str = "image"  # what was seen: see ImageSpec


@dataclass(frozen=True)
class Context:
    """Where a training and those of its parents run."""

    device: torch.device
    ranks: Ranks
    quiet: bool
    lock: checkpoint.Lock | None = None  # on the run's folder; None in all processes but the first

    def refuse_lost(self) -> None:
        """Raises LimnerError if the folder was renamed or removed: writing on would begin another, without a lock."""
        if self.lock and self.lock.is_lost():
            raise LimnerError(lost(self.lock.folder))


def lost(folder: Path) -> str:
    return (
        f"{folder} was renamed, moved or removed while it was trained, so training ends here and writes nothing more: "
        "continue from its last checkpoint with --resume and its new name, or train again."
    )
