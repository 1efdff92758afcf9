"""The sizes of a convolutional network's images and feature maps."""

from collections.abc import Sequence
from dataclasses import dataclass

from limner.networks.checks import SettingsError

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class FeatureShape:
    """Of a U-Net or a `codec`; each level has half the size of the one before."""

    channels: int  # of the input image
    out: int  # channels of the output image
    size: Size  # (height, width) of the images
    width: int  # unit of channels
    multiples: Sequence[int]  # channels of the feature maps by level, in units of ``width``
    blocks: int  # residual blocks a level; a codec's decoder has one more
    attention_resolutions: Sequence[int] = ()  # shorter sides, in pixels, of feature maps with attention
    patch: int = 1  # pixels a side that are folded into the channels first
    classes: int = 0  # labels; 0: none
    dropout: float = 0.0  # inside the blocks
    middle_attention: bool = (
        True  # attention between the two blocks in the middle, where the maps are smallest
    )

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


def check_levels(widths: Sequence[int], blocks: Sequence[int]) -> None:
    """Raises SettingsError unless there is one width and one number of blocks for each level."""
    if len(widths) != len(blocks):
        raise SettingsError(
            f"widths is for {len(widths)} levels and blocks for {len(blocks)}: give both one number a level"
        )


def level_sizes(size: Size, levels: int, patch: int = 1) -> list[Size]:
    """(height, width) of a network's feature maps by level; each level halves those of the one before.

    Level 0 has one position for each patch of ``patch`` x ``patch`` pixels of an image of ``size``, padded until
    it halves ``levels`` - 1 times.
    """
    multiple = patch * 2 ** (levels - 1)
    height, width = (-(-side // multiple) * multiple // patch for side in size)
    return [(height >> level, width >> level) for level in range(levels)]


def attention_levels(resolutions: Sequence[int], sizes: Sequence[Size]) -> tuple[int, ...]:
    """The levels at which a network attends: for each resolution the level whose shorter side is nearest by ratio.

    A resolution is the shorter side of feature maps, as in ``sizes``, by level. Raises SettingsError for one below 1.
    """
    if any(resolution < 1 for resolution in resolutions):
        raise SettingsError(f"attention resolutions are sides of 1 or more, not {min(resolutions)}")
    sides = [min(size) for size in sizes]
    ratios = [[max(side / r, r / side) for side in sides] for r in resolutions]  # resolutions x levels
    return tuple(sorted({row.index(min(row)) for row in ratios}))
