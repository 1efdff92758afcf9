"""The ResNet that translates pictures of any size (Johnson 2016; Zhu 2017, CycleGAN)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.convnets import init_normal
from limner.networks.images.padding import pad_reflected
from limner.networks.instance import InstanceNorm
from limner.networks.layers import at_least_float32


class ReflectedConv(nn.Conv2d):
    """A convolution of stride 1 that keeps the size; the picture is mirrored at its edges."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect")


class Blur(nn.Module):
    """Half the size by the filter [1, 2, 1] (Zhang 2019), which the means of neighbours make up."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 2, stride=1)  # [B, C, H + 1, W + 1]
        return F.avg_pool2d(x, 2)  # [B, C, H/2, W/2]


def normed(*layers: nn.Module, width: int) -> nn.Sequential:
    """Layers, an instance norm without weights, ReLU."""
    return nn.Sequential(*layers, InstanceNorm(width, affine=False), nn.ReLU(inplace=True))


def halving(inputs: int, outputs: int, antialias: bool) -> nn.Sequential:
    """[B, inputs, H, W] -> [B, outputs, H/2, W/2]."""
    if antialias:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            InstanceNorm(outputs, affine=False),
            nn.ReLU(inplace=True),
            Blur(),
        )
    return normed(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), width=outputs)


def doubling(inputs: int, outputs: int, antialias: bool) -> nn.Sequential:
    """[B, inputs, H, W] -> [B, outputs, 2 H, 2 W]."""
    if antialias:
        enlarge = nn.Upsample(scale_factor=2, mode="bilinear")  # the filter [1, 3, 3, 1]
        return normed(enlarge, nn.Conv2d(inputs, outputs, 3, padding=1), width=outputs)
    return normed(nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1), width=outputs)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norms, added to their input."""

    def __init__(self, width: int):
        super().__init__()
        last = ReflectedConv(width, width, 3), InstanceNorm(width, affine=False)
        self.layers = nn.Sequential(normed(ReflectedConv(width, width, 3), width=width), *last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # [B, C, H, W]


class ResNetTranslator(nn.Module):
    """Picture [B, channels, H, W] -> [B, out, H, W] in [-1, 1]: ResNet-9 or ResNet-6 by its ``blocks``.

    Instance norms have no weights, so that all convolutions have a bias. ``antialias``: sizes change by filters, as in
    CUT (Park 2020), rather than by strides. Without ``first_norm`` the network sees colours as they are; with it, their
    contrast to the picture's mean alone. Sides that ``factor`` does not divide are padded and cut.
    """

    factor, least = 4, 2  # sides are padded by reflection to multiples of the factor, at least so many

    def __init__(
        self, channels: int, out: int, width: int = 64, blocks: int = 9, antialias: bool = False,
        first_norm: bool = True,
    ):  # fmt: skip
        super().__init__()
        maps = [width, 2 * width, 4 * width]
        first = ReflectedConv(channels, width, 7)
        self.stem = normed(first, width=width) if first_norm else nn.Sequential(first, nn.ReLU(inplace=True))
        self.down = nn.ModuleList(halving(maps[i], maps[i + 1], antialias) for i in range(2))
        self.blocks = nn.ModuleList(ResidualBlock(maps[-1]) for _ in range(blocks))
        up = (doubling(maps[i + 1], maps[i], antialias) for i in reversed(range(2)))
        self.up = nn.Sequential(*up, ReflectedConv(width, out, 7))
        # The blocks whose output `features` gives, and the channels of all that it gives.
        self.feature_blocks = sorted({0, min(4, blocks - 1)}) if blocks else []
        self.feature_widths = [channels, *maps[1:], *[maps[2] for _ in self.feature_blocks]]
        # Pixels to a side that an output pixel depends on, beside the statistics of the norms: ends, halvings, blocks.
        self.margin = (21 if antialias else 12) + 8 * blocks
        init_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = self.stem(pad_reflected(image, self.factor))  # [B, W, H, W]
        for layer in (*self.down, *self.blocks):
            x = layer(x)  # [B, 2 W, H/2, W/2], then [B, 4 W, H/4, W/4]
        return torch.tanh(at_least_float32(self.up(x)))[..., :height, :width]  # [B, out, H, W]

    def features(self, image: Tensor) -> list[Tensor]:
        """What CUT compares: the picture, both halvings' convolutions, and the first and fifth (or last) block."""
        x = pad_reflected(image, self.factor)
        found = [x]
        x = self.stem(x)
        for layer in self.down.children():
            convolution, *rest = layer.children()
            found.append(x := convolution(x))
            for part in rest:
                x = part(x)
        for i, block in enumerate(self.blocks):
            if self.feature_blocks and i <= self.feature_blocks[-1]:
                x = block(x)
                found += [x] if i in self.feature_blocks else []
        return found
