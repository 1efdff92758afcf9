"""How much memory a network takes for a picture: measured on small ones, and foretold for large ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SPARE = 1.3  # times what tensors take: libraries copy some of them into forms of their own
FIXED = 48 * 2**20  # bytes besides, at most


@dataclass(frozen=True)
class Footprint:
    """Bytes that a network takes for a given picture: ``fixed``, and ``each`` for each of its pixels."""

    fixed: float
    each: float

    def most(self, memory: float) -> float:
        """Pixels of a given picture at most."""
        return max(0.0, (memory - self.fixed) / self.each)

    def of(self, pixels: float) -> float:
        return self.fixed + self.each * pixels


def footprint(run: Callable[[int, int], object], factor: int, least: int = 2) -> Footprint:
    """Of ``run(height, width)``, a network's call for a picture of that size, by two small ones."""
    sides = [max(least, side // factor) * factor for side in (64, 128)]
    if sides[0] == sides[1]:
        sides[1] *= 2
    small, large = (peak(lambda side=side: run(side, side)) for side in sides)  # type: ignore[misc]
    each = max((large - small) / (sides[1] ** 2 - sides[0] ** 2), 1.0)
    return Footprint(FIXED + SPARE * max(0.0, small - each * sides[0] ** 2), SPARE * each)


def peak(run: Callable[[], object]) -> int:
    """Bytes of the tensors that a call makes and has at once, at most."""
    with _Live() as live:
        run()
    return live.peak


class _Live(TorchDispatchMode):
    """Adds up the memory of the tensors that operations return, as long as these live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._storages = {
            key: (ref, size) for key, (ref, size) in self._storages.items() if not ref.expired()
        }
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return result


def in_use(device: torch.device) -> int:
    """Bytes that this process has now: of the machine's memory, or of a GPU's."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
