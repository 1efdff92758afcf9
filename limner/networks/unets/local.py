"""A U-Net for pictures of any size: each output pixel depends on surroundings of a fixed width."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.blocks import Block, ChannelNorm
from limner.networks.layers import pad_to_multiple, zero_init
from limner.networks.shape import check_levels


@dataclass(frozen=True)
class LocalLevels:
    """The feature maps of a `LocalUNet` by level, a part of a Config. Each level but the first halves the size."""

    may_be_zero: ClassVar[tuple[str, ...]] = ("blocks",)

    widths: tuple[int, ...] = (48, 128, 192)  # U-Net: channels by level
    blocks: tuple[int, ...] = (1, 1, 1)  # U-Net: residual blocks by level, going down and again going up
    patch: int = 2  # U-Net: pixels a side that are folded into the channels first
    dropout: float = 0.0  # U-Net: inside the blocks


class LocalUNet(nn.Module):
    """Picture [B, channels, H, W] and embedding [B, E] -> [B, out, H, W], 0 at first.

    As `unet.UNet`, without what ties that to a size: positions, attention, and norms over the picture. Sides that
    ``multiple`` does not divide are padded inside and cropped again. Raises SettingsError for levels that do not fit
    together.
    """

    def __init__(self, channels: int, out: int, embedding: int, levels: LocalLevels):
        super().__init__()
        check_levels(levels.widths, levels.blocks)
        widths, self.patch = levels.widths, levels.patch
        self.multiple = self.patch * 2 ** (len(widths) - 1)
        self.stem = nn.Conv2d(channels * self.patch**2, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.downsample, self.upsample = nn.ModuleList(), nn.ModuleList()
        for level, (wide, depth) in enumerate(zip(widths, levels.blocks, strict=True)):
            for way in (self.down, self.up):
                row = (Block(wide, embedding, levels.dropout, ChannelNorm) for _ in range(depth))
                way.append(nn.ModuleList(row))
            if level + 1 < len(widths):
                self.downsample.append(nn.Conv2d(wide, widths[level + 1], 2, stride=2))
                self.upsample.append(nn.Conv2d(widths[level + 1], wide, 1))
        self.norm = ChannelNorm(widths[0])
        self.head = zero_init(nn.Conv2d(widths[0], out * self.patch**2, 3, padding=1))
        # Two 3x3 convolutions a block, with the cells of a level that a side of the convolution reaches into.
        cells = [self.patch * 2**level for level in range(len(widths))]
        reach = sum(4 * cell * depth for cell, depth in zip(cells, levels.blocks, strict=True))
        self.margin = 2 * self.patch + reach + cells[-1]  # pixels to a side that an output pixel depends on

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = self.stem(F.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.patch))  # [B, W0, H/p, W/p]
        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks.children():
                x = block(x, embedding)  # [B, Wl, H/p/2^l, W/p/2^l]
            if level < len(self.downsample):
                skips.append(x)
                x = self.downsample[level](x)
        for level in reversed(range(len(self.up))):
            if level < len(self.upsample):
                x = F.interpolate(self.upsample[level](x), scale_factor=2.0) + skips.pop()
            for block in self.up[level].children():
                x = block(x, embedding)
        x = F.pixel_shuffle(self.head(F.silu(self.norm(x))), self.patch)  # [B, out, H, W]
        return x[..., :height, :width]
