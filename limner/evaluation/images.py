"""Sets of images to compare: read in parts, in the same channels, at a size that is stated."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from limner.core import DataOptions
from limner.data import Data, image_sizes
from limner.evaluation.real import as_bytes, as_saved
from limner.networks.images.channels import with_channels

MAX_SIDE = 512  # pixels; larger images are scaled down
DEFAULTS = DataOptions()
LOOKED_AT = 1000  # real images whose sizes are looked at

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Images:
    """Images as 8-bit files hold them, [B, C, H, W] in [-1, 1], read and converted when they are indexed.

    Conversion only adds channels: grey is repeated three times, and images without alpha are opaque. Clips are
    [B, C, T, H, W], unless ``frame`` says which frame is shown of each.
    """

    source: Data | Tensor
    channels: int
    frame: np.ndarray | None = None  # [N]

    @classmethod
    def of(cls, source: Data | Tensor, channels: int) -> Images:
        if isinstance(source, Data):  # only the pixels are read
            source = replace(source, given=None, labels=None, captions=None)
        return cls(source, channels)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | np.ndarray) -> Tensor:
        rows = np.arange(len(self))[index]
        images = self.source.batch(rows).image if isinstance(self.source, Data) else self.source[rows]
        if self.frame is not None:
            images = images[torch.arange(len(rows)), :, torch.from_numpy(self.frame[rows])]
        return as_saved(with_channels(images, self.channels))

    def part(self, rows: slice | np.ndarray) -> Images:
        """A view of some of the images."""
        frame = None if self.frame is None else self.frame[rows]
        if isinstance(self.source, Data):
            return replace(self, source=self.source.part(np.arange(len(self))[rows]), frame=frame)
        return replace(self, source=self.source[rows], frame=frame)

    def frames(self, seed: int) -> Images:
        """One random frame of each clip: frames of several clips are independent, those of one are not."""
        return replace(
            self, frame=np.random.default_rng(seed).integers(frames_of(self.source), size=len(self))
        )

    def batches(self, size: int = 64) -> Iterator[Tensor]:
        """All images in order."""
        for at in range(0, len(self), size):
            yield self[at : at + size]

    def keys(self) -> np.ndarray:
        """int64 [N], equal where the images are."""
        digests = [
            hashlib.blake2b(image.tobytes(), digest_size=8).digest()
            for batch in self.batches()
            for image in as_bytes(batch)
        ]
        return np.frombuffer(b"".join(digests), np.int64)


def channels_of(images: Data | Tensor) -> int:
    return images.spec.channels if isinstance(images, Data) else images.shape[1]


def frames_of(images: Data | Tensor) -> int:
    """T of clips; 1 of images."""
    if isinstance(images, Data):
        return images.spec.frames
    return images.shape[2] if images.ndim == 5 else 1


# Sizes --------------------------------------------------------------------------------------------------


def measuring_size(sizes: Sequence[Size], wanted: int) -> Size:
    """The height and width at which images of these sizes are compared.

    Their own where they share one; of several the median height and width, but not so small that features that want
    ``wanted`` pixels a side get fewer than the largest images have. Scaled down to MAX_SIDE pixels a side.
    """
    height, width = (statistics.median_low(sides) for sides in zip(*sizes, strict=True))
    least = min(wanted, max(map(min, sizes)))
    scale = max(1.0, least / min(height, width))
    scale = min(scale, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


FITTED = {
    "crop": "cropped and resized",
    "pad": "resized and padded",
    "squash": "squashed",
    "tiles": "cut into tiles",
}  # to another aspect


def resized_note(whose: str, sizes: Iterable[Size], size: Size, fit: str | None) -> list[str]:
    """A sentence that says which images are not compared at their own size, if there are any."""
    others = sorted({s for s in sizes if s != size}, key=lambda s: (s[0] * s[1], s))
    if not others:
        return []
    ends = [_spell(others[0]), *([_spell(others[-1])] if len(others) > 1 else [])]
    fits = all(abs(h * size[1] - w * size[0]) <= max(h, w) for h, w in others)
    how = "resized" if fits else FITTED[fit or "crop"]
    return [f"{whose} of {' to '.join(ends)} pixels were {how} to {_spell(size)}."]


def sizes_of(
    sources: Sequence[str], limit: int | None = LOOKED_AT, options: DataOptions = DEFAULTS
) -> list[Size]:
    """Heights and widths of up to ``limit`` images of each source; those of drawn sources are not counted."""
    return [size for source in sources for size in image_sizes(source, limit, options)]


def _spell(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
