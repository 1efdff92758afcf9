"""MicroAST (Wang 2023): the style of any picture, by two small encoders, modulation of features and of filters."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.layers import at_least_float32
from limner.networks.restyle import AdaptiveNorm, ReflectedConv, mean_std

BRANCH = 0.3  # of a residual block's last convolution at the beginning, so that four blocks do not add up


class Signals(NamedTuple):
    """What a style picture says to the decoder: [B, C] each, of the encoder's first and second level."""

    means: tuple[Tensor, Tensor]  # of its features
    deviations: tuple[Tensor, Tensor]
    gains: tuple[Tensor, Tensor]  # of filters: times what a convolution gives
    skips: tuple[Tensor, Tensor]  # of filters: times what it was given

    @property
    def all(self) -> list[Tensor]:
        return [signal for both in self for signal in both]

    def expand(self, n: int) -> Signals:
        """Of one picture, for ``n``."""
        return Signals(*((one.expand(n, -1), other.expand(n, -1)) for one, other in self))


class Block(nn.Module):
    """A residual block whose two convolutions a style may modulate (Wang 2023, section 3.2)."""

    def __init__(self, width: int):
        super().__init__()
        first, second = (ReflectedConv(width, width, 3) for _ in range(2))
        self.convs = nn.ModuleList([first, second])
        init_he(self)
        second.weight.data.mul_(BRANCH)

    def forward(self, x: Tensor, gain: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        first, second = self.convs
        if gain is None or skip is None:
            return x + second(F.relu(first(x)))  # [B, C, H, W]
        gain, skip = gain[:, :, None, None], skip[:, :, None, None]
        hidden = F.relu(gain * first(x) + skip * x)
        return x + gain * second(hidden) + skip * hidden


def init_he(network: nn.Module) -> None:
    """Weights as He 2015 has them and biases of 0: without norms, smaller ones leave little of the picture."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def separable(inputs: int, outputs: int, stride: int, groups: int) -> list[nn.Module]:
    """A 3x3 convolution within each of ``groups`` and a 1x1 convolution across them, a ReLU after both."""
    grouped = ReflectedConv(inputs, outputs, 3, stride, groups)
    return [grouped, nn.ReLU(), nn.Conv2d(outputs, outputs, 1), nn.ReLU()]


class Encoder(nn.Module):
    """[B, C, H, W] in [-1, 1] -> features of two levels, [B, 4 width, H/4, W/4] both."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.stem = nn.Sequential(
            ReflectedConv(channels, width, 9), nn.ReLU(),
            *separable(width, 2 * width, 2, width), *separable(2 * width, 4 * width, 2, 2 * width),
        )  # fmt: skip
        init_he(self.stem)
        self.levels = nn.ModuleList(Block(4 * width) for _ in range(2))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        first = self.levels[0](self.stem(image))  # [B, 4 W, H/4, W'/4]
        return first, self.levels[1](first)


class Modulator(nn.Module):
    """Features of two levels -> the gains and skips of two blocks, the means over places of 3x3 filters."""

    def __init__(self, width: int):
        super().__init__()
        self.gains, self.skips = (
            nn.ModuleList(ReflectedConv(width, width, 3, groups=width) for _ in range(2)) for _ in range(2)
        )

    def forward(self, levels: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        gains, skips = (
            tuple(conv(level).mean((2, 3)) for conv, level in zip(convs, levels, strict=True))
            for convs in (self.gains, self.skips)
        )
        return gains, skips  # type: ignore[return-value]  # [B, C] each


class Decoder(nn.Module):
    """Features of the content and a style's signals -> a picture, not clamped: the deeper level first."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norms = nn.ModuleList(AdaptiveNorm(4 * width) for _ in range(2))
        self.blocks = nn.ModuleList(Block(4 * width) for _ in range(2))
        self.up = nn.ModuleList(
            nn.Sequential(*separable(inputs, inputs // 2, 1, inputs // 2))
            for inputs in (4 * width, 2 * width)
        )
        self.last = ReflectedConv(width, channels, 9)
        init_he(self.up)

    def forward(self, content: Tensor, signals: Signals, alpha: float = 1.0) -> Tensor:
        x = content
        for norm, block, level in zip(self.norms, self.blocks, (1, 0), strict=True):
            x = norm(x, signals.deviations[level], signals.means[level], alpha)
            x = block(x, signals.gains[level], signals.skips[level])  # [B, 4 W, H/4, W'/4]
        for layer in self.up:
            x = layer(F.interpolate(x, scale_factor=2.0, mode="bilinear"))  # to [B, W, H, W']
        return self.last(x)


class MicroAST(nn.Module):
    """A picture [B, C, H, W] and style pictures [B, C, h, w], both in [-1, 1], of any size -> [B, C, H, W]."""

    def __init__(self, channels: int, width: int = 16):
        super().__init__()
        self.content_encoder = Encoder(channels, width)
        self.style_encoder = Encoder(channels, width)
        self.modulator = Modulator(4 * width)
        self.decoder = Decoder(channels, width)
        # Pixels on each side that a pixel depends on, by the kernels of the encoder and of the decoder.
        self.margin = (4 + 1 + 2 + 4 * 4) + (4 * 4 + 4 + 2 + 2 + 1 + 4)

    def signals(self, style: Tensor) -> Signals:
        """Of style pictures, [B, C, h, w] in [-1, 1]."""
        levels = self.style_encoder(style)
        (mean, std), (deeper_mean, deeper_std) = (mean_std(at_least_float32(level)) for level in levels)
        return Signals((mean, deeper_mean), (std, deeper_std), *self.modulator(levels))

    def forward(self, image: Tensor, signals: Signals, alpha: float = 1.0) -> Tensor:
        """``alpha``: the share of the style in the statistics of features."""
        painted = self.decoder(self.content_encoder(image)[1], signals, alpha)
        return painted[..., : image.shape[-2], : image.shape[-1]]  # [B, C, H, W]
