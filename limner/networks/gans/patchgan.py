"""A discriminator whose scores each see a patch of the image (Isola 2017)."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from limner.networks.convnets import init_normal
from limner.networks.instance import InstanceNorm
from limner.networks.layers import at_least_float32

Norm = Literal["batch", "instance", "none"]
NORMS: dict[Norm, Callable[[int], list[nn.Module]]] = {
    "batch": lambda width: [nn.BatchNorm2d(width)],
    "instance": lambda width: [InstanceNorm(width)],
    "none": lambda width: [],
}


def fit_layers(layers: int, size: tuple[int, int]) -> int:
    """The most halvings, up to ``layers``, that leave a score."""
    return max(n for n in range(1, layers + 1) if n == 1 or min(size) >> n >= 3)


class PixelGAN(nn.Module):
    """[B, C, H, W] -> scores [B, 1, H, W] of each pixel by itself (Isola 2017, 3.2.2)."""

    def __init__(self, channels: int, width: int = 64):
        super().__init__()
        middle = nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)
        first, last = nn.Conv2d(channels, width, 1), nn.Conv2d(2 * width, 1, 1, bias=False)
        self.layers = nn.Sequential(first, nn.LeakyReLU(0.2), *middle, last)
        init_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        return at_least_float32(self.layers(image))  # [B, 1, H, W]


class PatchGAN(nn.Module):
    """[B, C, H, W] -> scores [B, 1, h, w]; three ``layers``, each a halving, see 70 x 70 pixels.

    With batch norm as in VQGAN (Esser 2021), instance norm without weights of its own, as in CycleGAN, or no norm.
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 3, norm: Norm = "batch"):
        super().__init__()
        maps = [min(width * 2**i, width * 8) for i in range(layers + 1)]
        steps: list[nn.Module] = [nn.Conv2d(channels, maps[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(layers):
            stride = 2 if i + 1 < layers else 1
            steps += [
                nn.Conv2d(maps[i], maps[i + 1], 4, stride, 1, bias=norm != "batch"),
                *NORMS[norm](maps[i + 1]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*steps, nn.Conv2d(maps[-1], 1, 4, 1, 1))
        init_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        return at_least_float32(self.layers(image))  # [B, 1, h, w]
