"""The generator (SRResNet) and the discriminator of SRGAN (Ledig 2017, figure 4)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from limner.networks.checks import SettingsError
from limner.networks.layers import at_least_float32

Slopes = Literal["shared", "channel"]  # one slope a PReLU, or one a channel


class ResidualBlock(nn.Module):
    def __init__(self, width: int, slopes: Slopes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            _prelu(width, slopes),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # [B, C, h, w]


class SRResNet(nn.Module):
    """[B, C, h, w] in [-1, 1], which it takes to [0, 1] -> [B, C', scale h, scale w] about [-1, 1], without a tanh.

    Each doubling is a convolution and a pixel shuffle. Raises SettingsError for a scale that is no power of two.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        scale: int,
        width: int = 64,
        blocks: int = 16,
        slopes: Slopes = "shared",
    ):
        super().__init__()
        doublings = scale.bit_length() - 1
        if scale != 2**doublings or not doublings:
            raise SettingsError(f"SRResNet enlarges 2, 4 or 8 times, not {scale} times")
        self.first = nn.Sequential(nn.Conv2d(inputs, width, 9, padding=4), _prelu(width, slopes))
        self.blocks = nn.Sequential(*(ResidualBlock(width, slopes) for _ in range(blocks)))
        self.after = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.enlarge = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), _prelu(width, slopes)
                )
                for _ in range(doublings)
            )
        )
        self.last = nn.Conv2d(width, outputs, 9, padding=4)
        self.scale = scale
        self.margin = 4 + 2 * blocks + 1 + _margin_of_doublings(doublings)

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Slopes are not drawn to 0."""
        return [layer.weight for layer in self.modules() if isinstance(layer, nn.PReLU)]

    def forward(self, image: Tensor) -> Tensor:
        first = self.first((image + 1) / 2)  # [B, C, h, w]
        x = first + self.after(self.blocks(first))  # [B, C, h, w]
        return self.last(self.enlarge(x))  # [B, C', scale h, scale w]


def _margin_of_doublings(doublings: int) -> int:
    """Pixels before the doublings that a pixel after the last 9x9 convolution depends on, to either side."""
    ends = []
    for place in (-4, 2**doublings - 1 + 4):  # the farthest pixels that the last convolution sees
        for _ in range(doublings):
            place = place // 2 + (1 if place > 0 else -1)
        ends.append(abs(place))
    return max(ends)


class Discriminator(nn.Module):
    """Pictures [B, C, H, W] of one size -> logits [B].

    Its convolutions halve the side four times; the dense layer is tied to the size.
    """

    def __init__(self, channels: int, size: tuple[int, int], width: int = 64, dense: int = 1024):
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for i in range(8):
            maps = width * 2 ** (i // 2)
            layers.append(nn.Conv2d(inputs, maps, 3, stride=1 + i % 2, padding=1))
            layers += [*([nn.BatchNorm2d(maps)] if i else []), nn.LeakyReLU(0.2)]
            inputs = maps
        self.layers = nn.Sequential(*layers)
        height, width = (-(-side // 16) for side in size)
        self.dense = nn.Sequential(
            nn.Linear(inputs * height * width, dense), nn.LeakyReLU(0.2), nn.Linear(dense, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.layers(image)  # [B, 8 width, H/16, W/16]
        return at_least_float32(self.dense(x.flatten(1)))[:, 0]  # [B]


def _prelu(width: int, slopes: Slopes) -> nn.PReLU:
    return nn.PReLU(width if slopes == "channel" else 1, init=0.25)
