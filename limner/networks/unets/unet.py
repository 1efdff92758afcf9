"""A U-Net that is quick on a CPU: it folds patches into channels and does most of its work at the lowest resolutions.

Dense 3x3 convolutions in channels_last come nearest to the peak of a CPU, and a fused GroupNorm is cheap;
elementwise passes over the highest resolution are what costs. So the image is folded into patches first,
levels widen where they halve their side, and skips are added rather than concatenated.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.blocks import AlongTime, Attention, Block, frame_by_frame, norm
from limner.networks.layers import at_least_float32, pad_to_multiple, time_features, zero_init
from limner.networks.shape import FeatureShape, Size, attention_levels, check_levels, level_sizes


@dataclass(frozen=True)
class UNetLevels:
    """The feature maps of a `UNet` by level, a part of a family's Config. Each level but the first halves the size."""

    may_be_zero: ClassVar[tuple[str, ...]] = (
        "blocks",
        "attention_resolutions",
        "cross_attention_resolutions",
    )

    widths: tuple[int, ...] = (48, 128, 192)  # U-Net: channels by level
    # U-Net: residual blocks by level, going down and again going up; default: one each
    blocks: tuple[int, ...] = ()
    attention_resolutions: tuple[int, ...] = (4,)  # U-Net: shorter sides, in pixels, of maps with attention
    cross_attention_resolutions: tuple[int, ...] = (8,)  # U-Net: the same, for attention to the tokens alone
    patch: int = 2  # U-Net: pixels a side that are folded into the channels first
    head_width: int = 64  # U-Net: channels of an attention head
    dropout: float = 0.0  # U-Net: inside the blocks

    @property
    def depths(self) -> tuple[int, ...]:
        """The number of blocks of each level."""
        return self.blocks or (1,) * len(self.widths)


class UNet(nn.Module):
    """Image [B, channels, H, W], embedding [B, E], perhaps tokens [B, L, context] and mask [B, L] -> [B, out, H, W].

    ``size`` is (H, W); sides that do not divide are padded inside and cropped again. Raises SettingsError for levels
    that do not fit together.
    """

    def __init__(
        self, channels: int, out: int, size: Size, embedding: int, levels: UNetLevels, context: int = 0
    ):
        super().__init__()
        check_levels(levels.widths, levels.depths)
        widths, self.patch = levels.widths, levels.patch
        self.multiple = self.patch * 2 ** (len(widths) - 1)
        sizes = level_sizes(size, len(widths), self.patch)
        attention = attention_levels(levels.attention_resolutions, sizes)
        cross_attention = attention_levels(levels.cross_attention_resolutions, sizes) if context else ()
        self.stem = nn.Conv2d(channels * self.patch**2, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.downsample, self.upsample = nn.ModuleList(), nn.ModuleList()
        self.attention = nn.ModuleDict()
        self.position = nn.ParameterList()  # added before the blocks, so that their modulation depends on it
        for level, (wide, depth) in enumerate(zip(widths, levels.depths, strict=True)):
            for way in (self.down, self.up):
                way.append(nn.ModuleList(Block(wide, embedding, levels.dropout) for _ in range(depth)))
            self.position.append(nn.Parameter(0.3 * torch.randn(wide, *sizes[level])))
            if level in attention or level in cross_attention:
                for name in ("down", "up"):
                    attends = wide, sizes[level], levels.head_width, context, level in attention
                    self.attention[f"{name}{level}"] = Attention(*attends)
            if level + 1 < len(widths):
                self.downsample.append(nn.Conv2d(wide, widths[level + 1], 2, stride=2))
                self.upsample.append(nn.Conv2d(widths[level + 1], wide, 1))
        self.norm = norm(widths[0])
        self.head = zero_init(nn.Conv2d(widths[0], out * self.patch**2, 3, padding=1))

    def forward(
        self, x: Tensor, embedding: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None,
        along_time: AlongTime = frame_by_frame,
    ) -> Tensor:  # fmt: skip
        """``along_time`` is told places such as down1_0_2 (level, block, convolution) and down1 (the level's end)."""
        height, width = x.shape[-2:]
        x = self.stem(F.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.patch))  # [B, W0, H/p, W/p]
        skips = []
        for level, blocks in enumerate(self.down):
            x = x + self.position[level]  # [B, Wl, H/p/2^l, W/p/2^l]
            for i, block in enumerate(blocks.children()):
                x = block(x, embedding, along_time, f"down{level}_{i}")  # [B, Wl, H/p/2^l, W/p/2^l]
            if f"down{level}" in self.attention:
                x = self.attention[f"down{level}"](x, tokens, mask)
            x = along_time(f"down{level}", x)
            if level < len(self.downsample):
                skips.append(x)
                x = self.downsample[level](x)
        for level in reversed(range(len(self.up))):
            if level < len(self.upsample):
                x = F.interpolate(self.upsample[level](x), scale_factor=2.0) + skips.pop()
            for i, block in enumerate(self.up[level].children()):
                x = block(x, embedding, along_time, f"up{level}_{i}")
            if f"up{level}" in self.attention:
                x = self.attention[f"up{level}"](x, tokens, mask)
            x = along_time(f"up{level}", x)
        x = F.pixel_shuffle(self.head(F.silu(self.norm(x))), self.patch)  # [B, out, H, W]
        return x[..., :height, :width]


class QuickUNet(nn.Module):
    """A `UNet` with embeddings of a time and a label, the default of the diffusion families.

    Image [B, channels, H, W] and times [B] in [0, 1] -> [B, out, H, W], 0 at first.

    ``head_width``: channels of an attention head. ``augment``: numbers that describe an image's augmentation; 0: none.
    """

    def __init__(self, shape: FeatureShape, head_width: int = 64, augment: int = 0):
        super().__init__()
        s, embedding = shape, 2 * shape.width
        self.time = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(s.classes, embedding) if s.classes else None
        self.augment = nn.Linear(augment, embedding, bias=False) if augment else None
        levels = UNetLevels(
            tuple(s.widths), (s.blocks,) * len(s.widths), tuple(s.attention_resolutions), (), s.patch, head_width,
            s.dropout,
        )  # fmt: skip
        self.unet = UNet(s.channels, s.out, s.size, embedding, levels)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """``label`` [B] is -1 for none; ``augment`` [B, A] is 0 for an image that was not augmented."""
        embedding = self.time(time_features(t, 64))  # [B, E]
        if self.label is not None and label is not None:
            embedding = embedding + self.label(label.clamp(min=0)) * (label >= 0)[:, None]  # [B, E]
        if self.augment is not None and augment is not None:
            embedding = embedding + self.augment(augment)  # [B, E]
        return at_least_float32(self.unet(x, F.silu(embedding)))  # [B, out, H, W]
