"""SPAN (Wan 2024, "Swift Parameter-free Attention Network"): 3x3 convolutions and one pixel shuffle."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GAIN = 2  # width of a training branch, relative to its convolution's


class BranchedConvolution(nn.Module):
    """A 3x3 convolution that trains as 1x1, 3x3, 1x1 beside a 1x1 (Wan 2024, figure 3), all linear.

    The picture is padded before the first 1x1, so the branches amount to one convolution with zero padding at the
    border too. It is that one convolution which is computed: the branches are merged in every pass, at the cost of a
    pixel or two.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.widen = nn.Conv2d(inputs, GAIN * inputs, 1)
        self.middle = nn.Conv2d(GAIN * inputs, GAIN * outputs, 3)
        self.narrow = nn.Conv2d(GAIN * outputs, outputs, 1)
        self.beside = nn.Conv2d(inputs, outputs, 1)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """The weight [outputs, inputs, 3, 3] and the bias [outputs] of the one convolution."""
        (widen, first), (middle, second), (narrow, third), (beside, fourth) = (
            layer.parameters() for layer in (self.widen, self.middle, self.narrow, self.beside)
        )
        weight = torch.einsum("om,mnhw,ni->oihw", narrow[..., 0, 0], middle, widen[..., 0, 0])
        bias = narrow[..., 0, 0] @ (middle.sum((2, 3)) @ first + second) + third + fourth
        return weight + F.pad(beside, (1, 1, 1, 1)), bias

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.kernel()
        return F.conv2d(x, weight, bias, padding=1)  # [B, outputs, H, W]


def attend_without_parameters(features: Tensor, x: Tensor) -> Tensor:
    """(features + x) (sigmoid(features) - 1/2), odd in the features where x is 0 (Wan 2024, eq. 4)."""
    return (features + x) * (torch.sigmoid(features) - 0.5)


class Block(nn.Module):
    """[B, C, H, W] -> the attended features, and the first convolution's, both [B, C, H, W]."""

    def __init__(self, width: int, branched: bool):
        super().__init__()
        self.convolutions = nn.ModuleList(_convolution(width, width, branched) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = F.silu(self.convolutions[0](x))
        features = self.convolutions[2](F.silu(self.convolutions[1](first)))
        return attend_without_parameters(features, x), first


class SPAN(nn.Module):
    """[B, C, h, w] in [-1, 1] -> [B, C', scale h, scale w] of any range.

    ``branched``: with the branches of training; ``merged`` gives the network without them.
    """

    def __init__(
        self, inputs: int, outputs: int, scale: int, width: int = 28, blocks: int = 6, branched: bool = True
    ):
        super().__init__()
        self.settings, self.branched = (inputs, outputs, scale, width, blocks), branched
        self.first = _convolution(inputs, width, branched)
        self.blocks = nn.ModuleList(Block(width, branched) for _ in range(blocks))
        self.after = _convolution(width, width, branched)
        self.join = nn.Conv2d(4 * width, width, 1)
        self.last = nn.Conv2d(width, outputs * scale**2, 3, padding=1)
        self.scale = scale
        self.margin = 3 * blocks + 3  # given pixels around a pixel that it depends on

    def forward(self, image: Tensor) -> Tensor:
        first = x = self.first(image)  # [B, C, h, w]
        for i, block in enumerate(self.blocks):
            x, inner = block(x)
            if i == 0:
                attended = x
        joined = self.join(torch.cat([first, self.after(x), attended, inner], dim=1))  # [B, C, h, w]
        return F.pixel_shuffle(self.last(joined), self.scale)  # [B, C', scale h, scale w]

    @torch.no_grad()
    def merged(self) -> SPAN:
        """The same function with single convolutions, in weights of its own."""
        with torch.device("meta"):  # draws no numbers for weights that are replaced
            plain = SPAN(*self.settings, branched=False)
        for name, layer in plain.named_modules():
            if isinstance(layer, nn.Conv2d):
                source = self.get_submodule(name)
                kernel = (
                    source.kernel() if isinstance(source, BranchedConvolution) else tuple(source.parameters())
                )
                layer.weight, layer.bias = (nn.Parameter(value.clone()) for value in kernel)
        return plain


def _convolution(inputs: int, outputs: int, branched: bool) -> nn.Module:
    return BranchedConvolution(inputs, outputs) if branched else nn.Conv2d(inputs, outputs, 3, padding=1)
