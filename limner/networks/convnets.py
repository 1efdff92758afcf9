"""Convolutional blocks for images of any size: downsampling halves and rounds, upsampling doubles and crops."""

import math
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from limner.networks.shape import Size

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid", "silu"]


def activation(name: Activation) -> nn.Module:
    """The nonlinearity of that name; leaky relu has slope 0.2, as GANs do."""
    return {
        "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.2), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(),
        "silu": nn.SiLU(),
    }[name]  # fmt: skip


def halvings(size: Size, smallest: int = 4) -> int:
    """Number of halvings that leave an image's shorter side about ``smallest`` pixels; at least 1."""
    return max(1, round(math.log2(min(size) / smallest)))


def base_size(size: Size) -> tuple[Size, int]:
    """(base, n), where ``size`` is base x 2^n: halved while both sides are even and keep at least 3 pixels."""
    (height, width), doublings = size, 0
    while height % 2 == width % 2 == 0 and min(height, width) >= 6:
        height, width, doublings = height // 2, width // 2, doublings + 1
    return (height, width), doublings


def widths(first: int, widest: int, levels: int) -> list[int]:
    """Channels by level, fine to coarse: doubled at each, at most ``widest``."""
    return [min(first * 2**level, widest) for level in range(levels)]


def ceil_sizes(size: Size, levels: int) -> list[Size]:
    """The sizes after 0, 1, ..., ``levels`` halvings, rounded up."""
    return [(-(-size[0] // 2**i), -(-size[1] // 2**i)) for i in range(levels + 1)]


def init_normal(module: nn.Module, std: float = 0.02) -> None:
    """Weights N(0, std), norm gains N(1, std), biases 0 (Radford 2016, section 4)."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            nn.init.normal_(m.weight, 0.0, std)
        elif isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1.0, std)
        else:
            continue
        if isinstance(bias := getattr(m, "bias", None), Tensor):
            nn.init.zeros_(bias)


class Crop(nn.Module):
    """The centre of an image, ``size`` pixels."""

    def __init__(self, size: Size):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.size
        top, left = (x.shape[-2] - h) // 2, (x.shape[-1] - w) // 2
        return x[..., top : top + h, left : left + w]  # [B, C, h, w]


def normalised(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(math.gcd(8, channels), channels), nn.SiLU()]


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, added to the input (He 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        half = [[*normalised(channels), nn.Conv2d(channels, channels, 3, padding=1)] for _ in range(2)]
        self.layers = nn.Sequential(*half[0], *half[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # [B, C, H, W]


def mlp(features: list[int], act: Activation, norm: bool = False) -> nn.Sequential:
    """Linear layers through ``features`` units, with ``act`` after each but the last."""
    layers: list[nn.Module] = []
    for i, o in pairwise(features[:-1]):
        layers += [nn.Linear(i, o), *([nn.BatchNorm1d(o)] if norm else []), activation(act)]
    return nn.Sequential(*layers, nn.Linear(features[-2], features[-1]))


def residual_encoder(channels: int, size: Size, width: int, widest: int, out: int) -> nn.Sequential:
    """[B, channels, H, W] -> [B, out], through residual blocks at 1/2, 1/4, ... of the size."""
    levels = halvings(size)
    maps = widths(width, widest, levels)
    layers: list[nn.Module] = []
    for i, o in pairwise([channels, *maps]):
        layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), ResidualBlock(o)]  # [B, o, ceil(H/2), ceil(W/2)]
    h, w = ceil_sizes(size, levels)[-1]
    head = nn.Linear(maps[-1] * h * w, out)
    return nn.Sequential(*layers, *normalised(maps[-1]), nn.Flatten(), head)


def residual_decoder(latent: int, channels: int, size: Size, width: int, widest: int) -> nn.Sequential:
    """[B, latent] -> [B, channels, H, W]: `residual_encoder` in reverse."""
    levels = halvings(size)
    maps = widths(width, widest, levels)[::-1]
    h, w = ceil_sizes(size, levels)[-1]
    stem = nn.Linear(latent, maps[0] * h * w)
    layers = [stem, nn.Unflatten(1, (maps[0], h, w)), ResidualBlock(maps[0])]  # [B, maps, h, w]
    for i, o in pairwise(maps):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(i, o, 3, padding=1), ResidualBlock(o)]
    head = nn.Conv2d(maps[-1], 4 * channels, 3, padding=1)
    return nn.Sequential(*layers, *normalised(maps[-1]), head, nn.PixelShuffle(2), Crop(size))
