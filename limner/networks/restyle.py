"""Networks that paint a picture in a style: one of several that they have learnt, or that of any picture.

Statistics of the style replace those of the content, channel by channel: learnt ones (conditional instance norm,
Dumoulin 2017) or those of a style picture's features (adaptive instance norm, Huang 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.checks import SettingsError
from limner.networks.instance import InstanceNorm


def mean_std(features: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """[B, C, H, W] -> mean and deviation [B, C]: of unbiased variance, 0 of one place, plus ``eps`` (Huang 2017)."""
    variance = features.var((2, 3), correction=min(1, features[0, 0].numel() - 1))
    return features.mean((2, 3)), (variance + eps).sqrt()


def adain(content: Tensor, mean: Tensor, std: Tensor, alpha: float = 1.0) -> Tensor:
    """[B, C, H, W] with the mean and deviation [B, C] of a style, by the share ``alpha`` (Huang 2017, eq. 8, 14)."""
    own_mean, own_std = mean_std(content)
    factor = 1 + alpha * (std / own_std - 1)  # [B, C]
    shift = alpha * (mean - own_mean * std / own_std)
    return content * factor[:, :, None, None] + shift[:, :, None, None]


class AdaptiveNorm(InstanceNorm):
    """``adain`` whose statistics of the content can be those of the whole picture, as those of other norms can.

    Given ones are biased, which differs by 1 / (2 N) of the deviation for N places.
    """

    def forward(
        self, x: Tensor, gain: Tensor | None = None, shift: Tensor | None = None, alpha: float = 1.0
    ) -> Tensor:
        """[B, C, H, W] with deviations ``gain`` and means ``shift``, [B, C]."""
        assert gain is not None and shift is not None
        if self.source is None:
            return adain(x, shift, gain, alpha)
        return torch.lerp(x, super().forward(x, gain, shift), alpha)  # [B, C, H, W]


class ReflectedConv(nn.Conv2d):
    """A convolution, of an odd kernel, that continues the picture by reflection; of odd sides, a half is rounded up."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, padding_mode="reflect")


class StyledConv(nn.Module):
    """A convolution and an instance norm with a gain and a shift for each style (Dumoulin 2017, eq. 5)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, styles: int, stride: int = 1):
        super().__init__()
        self.conv = ReflectedConv(inputs, outputs, kernel, stride)
        self.norm = InstanceNorm(outputs)
        self.gain = nn.Parameter(torch.ones(styles, outputs))
        self.shift = nn.Parameter(torch.zeros(styles, outputs))

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        return self.norm(self.conv(x), shares @ self.gain, shares @ self.shift)  # [B, C, H/stride, W/stride]


class StyledBlock(nn.Module):
    """A residual block without a nonlinearity after the sum (Johnson 2016, supplement)."""

    def __init__(self, width: int, styles: int):
        super().__init__()
        self.convs = nn.ModuleList(StyledConv(width, width, 3, styles) for _ in range(2))

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        first, second = self.convs
        return x + second(F.relu(first(x, shares)), shares)  # [B, C, H, W]


class StyleNetwork(nn.Module):
    """Fast style transfer (Johnson 2016) with instance norm (Ulyanov 2016) for several styles at once.

    A picture [B, C, H, W] in [-1, 1] and the shares [B, S] of its styles, with sum 1 -> [B, C, H, W], not clamped. Two
    halvings, residual blocks at a quarter of the side, nearest enlargement; no tanh. Sides from 8 on.

    Raises SettingsError for a kernel of the ends that is even.
    """

    def __init__(self, channels: int, styles: int, width: int = 32, blocks: int = 5, kernel: int = 9):
        super().__init__()
        if not kernel % 2:
            raise SettingsError(f"a kernel of {kernel} is even and has no middle")
        maps = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(
            [
                StyledConv(channels, maps[0], kernel, styles),
                StyledConv(maps[0], maps[1], 3, styles, stride=2),
                StyledConv(maps[1], maps[2], 3, styles, stride=2),
            ]
        )
        self.blocks = nn.ModuleList(StyledBlock(maps[2], styles) for _ in range(blocks))
        self.up = nn.ModuleList(StyledConv(maps[i + 1], maps[i], 3, styles) for i in (1, 0))
        self.last = ReflectedConv(maps[0], channels, kernel)
        # Pixels on each side that a pixel depends on, by the kernels; 3 more for where it lies in its group of 4x4.
        self.margin = 2 * (kernel // 2) + 2 * (1 + 2) + 4 * 2 * blocks + 3

    def forward(self, image: Tensor, shares: Tensor) -> Tensor:
        x = image
        for layer in self.down:
            x = F.relu(layer(x, shares))  # [B, W, H, W'] to [B, 4 W, H/4, W'/4]
        for block in self.blocks:
            x = block(x, shares)
        for layer in self.up:
            x = F.relu(layer(F.interpolate(x, scale_factor=2.0), shares))  # to [B, W, H, W']
        return self.last(x)[..., : image.shape[-2], : image.shape[-1]]  # [B, C, H, W']
