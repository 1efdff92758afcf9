"""Packed images: read by index, so that a batch is a pure function of what was seen before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from limner.core import Batch, Condition, ImageSpec, mix
from limner.data.sources import Problem
from limner.settings import LimnerError


@dataclass(frozen=True)
class Data:
    """Images as they were packed, or a view of some of them.

    Values are uint8 or uint16 over their full range; alpha is premultiplied.
    """

    spec: ImageSpec
    fingerprint: str  # of pixels, labels and captions: names the data wherever it lies
    pixels: np.ndarray  # memory-mapped [M, H, W, C]; video [M, T, H, W, C]
    rows: np.ndarray  # [N] the rows of `pixels` that this is
    names: list[str]  # N
    labels: np.ndarray | None = None  # [N] int64
    captions: list[str] | None = None  # N; '' where an image has none
    problems: list[Problem] = dataclasses.field(default_factory=list)  # files left out, and why

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def array(self) -> np.ndarray:
        """[N, H, W, C]; video [N, T, H, W, C]: the memory map itself, or a copy of a view's part of it."""
        whole = np.array_equal(self.rows, np.arange(len(self.pixels)))
        return self.pixels if whole else self.pixels[self.rows]

    def part(self, indices: np.ndarray) -> Data:
        """A view of some of the images."""
        return dataclasses.replace(
            self,
            rows=self.rows[indices],
            names=[self.names[i] for i in indices],
            labels=None if self.labels is None else self.labels[indices],
            captions=None if self.captions is None else [self.captions[i] for i in indices],
        )

    def split(self, holdout: float, per_class: int = 0) -> tuple[Data, Data]:
        """(training part, held-out part): disjoint, always the same, with every class's share in each.

        From 20 images on at least one is held out, unless `holdout` is 0; below, none is. With `per_class`
        the training part is only so many images of each class.
        """
        n = len(self)
        if not 0 <= holdout < 1:
            raise LimnerError(f"The held-out share is {holdout}: it must be at least 0 and below 1.")
        held = max(1, round(n * holdout)) if n >= 20 and holdout > 0 else 0
        keys = np.random.PCG64(mix("split", self.fingerprint)).random_raw(n)
        order = np.lexsort((keys, np.zeros(n) if self.labels is None else self.labels))
        # Classes lie one after another in `order`: even steps through it take the same share of each.
        chosen = order[((np.arange(held) + 0.5) * n / max(held, 1)).astype(np.int64)]
        mask = np.zeros(n, bool)
        mask[chosen] = True
        training, held_out = self.part(np.flatnonzero(~mask)), self.part(np.flatnonzero(mask))
        return training._few(per_class) if per_class else training, held_out

    def _few(self, per_class: int) -> Data:
        """So many random images of each class, always the same."""
        if per_class < 0 or self.labels is None:
            raise LimnerError(
                f"Cannot take {per_class} images of each class: "
                + ("these images have no classes." if self.labels is None else "name a number above 0.")
            )
        keys = np.random.PCG64(mix("few", self.fingerprint)).random_raw(len(self))
        order = np.lexsort((keys, self.labels))
        labels = self.labels[order]
        place = np.arange(len(order)) - np.searchsorted(labels, labels)  # within its class
        return self.part(np.sort(order[place < per_class]))

    def order(self, seen: int, count: int, seed: int) -> np.ndarray:
        """[count] indices at positions seen, seen + 1, ... of an endless stream of shuffled epochs."""
        n = len(self)
        if n == 0:
            raise LimnerError("There are no images to train on: give a source that has some.")
        epochs, places = np.divmod(np.arange(seen, seen + count), n)
        runs = [_permutation(n, seed, int(e))[places[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(runs) if runs else np.empty(0, np.int64)

    def batch(self, indices: np.ndarray, flip: np.ndarray | None = None) -> Batch:
        """The images at `indices`, those where `flip` is True mirrored, with what is known of them."""
        indices = np.asarray(indices)
        pixels = self.pixels[self.rows[indices]]  # [B, (T,) H, W, C]
        if flip is not None and np.any(flip):
            pixels[flip] = pixels[flip, ..., ::-1, :]
        full = 255 if pixels.dtype == np.uint8 else 65535
        image = torch.from_numpy(pixels).movedim(-1, 1)
        image = image.to(torch.float32, memory_format=torch.contiguous_format)
        image = image.mul_(2 / full).sub_(1)  # [B, C, (T,) H, W]
        label = None if self.labels is None else torch.from_numpy(self.labels[indices])
        text = None if self.captions is None else [self.captions[i] for i in indices]
        return Batch(image, Condition(len(indices), label=label, text=text))


def batches(data: Data, limit: int | None = None, size: int = 64) -> Iterator[torch.Tensor]:
    """The images [B, C, H, W] in order, up to ``limit`` of them."""
    n = min(len(data), limit or len(data))
    for at in range(0, n, size):
        yield data.batch(np.arange(at, min(at + size, n))).image


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """[n]; by sorting raw bits, whose stream NumPy never changes (that of `permutation` it may)."""
    keys = np.random.PCG64(mix("order", seed, epoch)).random_raw(n)
    return np.argsort(keys, kind="stable")
