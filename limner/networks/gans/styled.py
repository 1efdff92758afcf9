"""StyleGAN2: modulated convolutions, a skip generator, a discriminator (Karras 2020; labels: 2020b)."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.gans.convolve import conv2d
from limner.networks.gans.equalised import EqualConv2d, EqualLinear, leaky_relu, minibatch_stddev, pixel_norm
from limner.networks.images.resample import downsample2d, kernel, resample2d, upsample2d

Noise = Callable[[int, int], Tensor]  # (height, width) -> [B, 1, height, width]


def modulated_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool = True, up: Tensor | None = None
) -> Tensor:
    """[B, I, H, W] by weights [O, I, k, k] that [B, I] styles scale -> [B, O, H, W] (Karras 2020, eqs. 1 and 3).

    The input is scaled instead of the weight, and the output demodulated: the same numbers by one shared
    convolution. With the filter ``up`` the result has twice the size.
    """
    styles = styles.to(torch.promote_types(styles.dtype, torch.float32))
    x = x * styles[:, :, None, None]
    if up is None:
        x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
    else:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # [B, O, 2H + 1, 2W + 1]
        x = resample2d(x, up, pad=(1, 1, 1, 1), gain=4)
    if demodulate:
        with torch.autocast(x.device.type, enabled=False):
            power = styles.square() @ weight.square().sum((2, 3)).T  # [B, O]
        x = x * (power + 1e-8).rsqrt()[:, :, None, None]
    return x


class Mapping(nn.Module):
    """z [B, latent] and, with classes, a label -> w [B, style]; without a latent from the label alone."""

    def __init__(self, latent: int, classes: int, style: int, layers: int, lr_multiplier: float = 0.01):
        super().__init__()
        self.classes = classes
        self.embed = EqualLinear(classes, style) if classes else None
        units = [latent + (style if classes else 0), *[style] * layers]
        self.layers = nn.ModuleList(EqualLinear(i, o, True, lr_multiplier) for i, o in pairwise(units))

    def forward(self, z: Tensor | None, label: Tensor | None) -> Tensor:
        parts = [] if z is None else [pixel_norm(z)]
        if self.embed is not None:
            assert label is not None
            one_hot = F.one_hot(label, self.classes).to(self.embed.weight.dtype)  # [B, K]
            parts.append(pixel_norm(self.embed(one_hot)))
        x = torch.cat(parts, dim=1)
        for layer in self.layers:
            x = leaky_relu(layer(x))
        return x  # [B, style]


class StyledConv(nn.Module):
    """A modulated 3x3 convolution, noise of a learned strength, a bias, leaky ReLU."""

    up: Tensor | None

    def __init__(self, inputs: int, outputs: int, style: int, doubles: bool = False):
        super().__init__()
        self.style = EqualLinear(style, inputs, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("up", kernel() if doubles else None, persistent=False)

    def forward(self, x: Tensor, w: Tensor, noise: Noise | None) -> Tensor:
        x = modulated_conv2d(x, self.weight, self.style(w), up=self.up)
        if noise is not None:
            x = x + self.strength * noise(x.shape[2], x.shape[3])
        return leaky_relu(x + self.bias[:, None, None])  # [B, O, H, W]


class ToImage(nn.Module):
    """A modulated 1x1 convolution to an image's channels, without demodulation."""

    def __init__(self, inputs: int, channels: int, style: int):
        super().__init__()
        self.style = EqualLinear(style, inputs, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = inputs**-0.5

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = modulated_conv2d(x, self.weight, self.style(w) * self.scale, demodulate=False)
        return x.float() + self.bias[:, None, None]  # [B, C, H, W]


class SkipGenerator(nn.Module):
    """Styles [B, layers, style] -> image: the sum of images of each size, upsampled (Karras 2020, fig. 7b).

    ``base`` is (height, width) of the learned first features; ``maps`` are the features by size, coarse to fine.
    Layer l uses the style w[:, l], the last image layer one of its own. ``bounded``: a tanh at the end.
    """

    up: Tensor

    def __init__(
        self, channels: int, base: tuple[int, int], maps: Sequence[int], style: int, bounded: bool = False
    ):
        super().__init__()
        self.bounded = bounded
        self.first = nn.Parameter(torch.randn(maps[0], *base))
        self.before = nn.ModuleList(StyledConv(i, o, style, True) for i, o in pairwise(maps))
        self.after = nn.ModuleList(StyledConv(o, o, style) for o in maps)
        self.images = nn.ModuleList(ToImage(o, channels, style) for o in maps)
        self.register_buffer("up", kernel(), persistent=False)
        self.layers = 2 * len(maps)

    def forward(self, w: Tensor, noise: Noise | None) -> Tensor:
        x = self.first.expand(len(w), -1, -1, -1)
        x = self.after[0](x, w[:, 0], noise)  # [B, M, h, w]
        image = self.images[0](x, w[:, 1])  # [B, C, h, w]
        for i in range(1, len(self.after)):
            x = self.before[i - 1](x, w[:, 2 * i - 1], noise)  # [B, M, 2h, 2w]
            x = self.after[i](x, w[:, 2 * i], noise)
            image = upsample2d(image, self.up) + self.images[i](x, w[:, 2 * i + 1])  # [B, C, 2h, 2w]
        return image.tanh() if self.bounded else image


class Down(nn.Module):
    """Two convolutions to half the size; ``residual``: and a shortcut by a 1x1 convolution (Karras 2020, fig. 7c)."""

    down: Tensor

    def __init__(self, inputs: int, outputs: int, residual: bool):
        super().__init__()
        self.same = EqualConv2d(inputs, inputs, 3)
        self.halve = EqualConv2d(inputs, outputs, 3)
        self.shortcut = EqualConv2d(inputs, outputs, 1, bias=False, gain=0.5**0.5) if residual else None
        self.register_buffer("down", kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = leaky_relu(self.same(x))
        h = resample2d(h, self.down, pad=(2, 2, 2, 2))  # [B, I, H + 1, W + 1]
        h = conv2d(h, self.halve.weight * self.halve.scale, self.halve.bias, stride=2)
        if self.shortcut is None:
            return leaky_relu(h)  # [B, O, H/2, W/2]
        y = self.shortcut(downsample2d(x, self.down))
        return y + leaky_relu(h, 1.0)  # [B, O, H/2, W/2]; the gain sqrt(2) times sqrt(1/2) of the sum


class Discriminator(nn.Module):
    """Image and, with classes, a label -> score [B], positive for real.

    A label enters by projection (Miyato and Koyama 2018), through a mapping network of ``layers``.
    ``residual``: see `Down`; ``group``: see `minibatch_stddev`.
    """

    def __init__(
        self, channels: int, base: tuple[int, int], maps: Sequence[int], classes: int, layers: int, group: int,
        residual: bool,
    ):  # fmt: skip
        super().__init__()
        fine, wide = maps[::-1], maps[0]
        self.group, self.scale = group, wide**-0.5
        self.read = EqualConv2d(channels, fine[0], 1)
        self.blocks = nn.ModuleList(Down(i, o, residual) for i, o in pairwise(fine))
        self.last = EqualConv2d(wide + 1, wide, 3)
        self.dense = EqualLinear(wide * math.prod(base), wide)
        self.score = EqualLinear(wide, wide if classes else 1)
        self.mapping = Mapping(0, classes, wide, layers) if classes else None

    def forward(self, image: Tensor, label: Tensor | None) -> Tensor:
        x = leaky_relu(self.read(image))  # [B, M, H, W]
        for block in self.blocks:
            x = block(x)  # [B, M, H/2, W/2]
        x = leaky_relu(self.last(minibatch_stddev(x, self.group)))  # [B, M, h, w]
        x = self.score(leaky_relu(self.dense(x.flatten(1)))).float()  # [B, 1] or [B, M]
        if self.mapping is not None:
            x = x * self.mapping(None, label).float() * self.scale
        return x.sum(1)  # [B]
