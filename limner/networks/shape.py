"""The sizes of a convolutional network's images and feature maps."""

from collections.abc import Sequence
from dataclasses import dataclass

from limner.networks.layers import Size, attention_levels, level_sizes


@dataclass(frozen=True)
class FeatureShape:
    """Of a U-Net or a `codec`; each level has half the size of the one before."""

    channels: int  # of the input image
    out: int  # channels of the output image
    size: Size  # (height, width) of the images
    width: int  # unit of channels
    multiples: Sequence[int]  # channels of the feature maps by level, in units of ``width``
    blocks: int  # residual blocks a level; a codec's decoder has one more
    attention_resolutions: Sequence[int] = ()  # shorter sides of the feature maps that attend, in patches
    patch: int = 1  # pixels a side that are folded into the channels first
    classes: int = 0  # labels; 0: none
    dropout: float = 0.0  # inside the blocks

    @property
    def widths(self) -> list[int]:
        return [self.width * multiple for multiple in self.multiples]

    @property
    def attention(self) -> tuple[int, ...]:
        """The levels that attend."""
        sizes = level_sizes(self.size, len(self.multiples), self.patch)
        return attention_levels(self.attention_resolutions, sizes)

    @property
    def factor(self) -> int:
        """Pixels a side of one position of the last level."""
        return self.patch * 2 ** (len(self.multiples) - 1)
