"""EfficientNet-Lite0, a small network of ImageNet's classes, without its classifier: features of images.

Tan and Le 2019, "EfficientNet" (table 1), in its Lite form: no squeeze and excitation, ReLU6 for swish.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

STEM, WIDTH = 32, 1280  # channels of the first convolution, and of the features


class Stage(NamedTuple):
    """Blocks of one width; the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int  # of a block's channels within it
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Convolution(nn.Module):
    """A convolution with batch norm, and ReLU6 unless ``linear``: [B, wide, H, W] -> [B, out, ceil(H / stride), ...].

    Padding is TensorFlow's SAME: of an odd number of pixels the last goes to the right and below.
    """

    def __init__(
        self, wide: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ):
        super().__init__()
        self.kernel, self.stride, self.linear = kernel, stride, linear
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(wide, out, kernel, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            down, right = (self._missing(side) for side in x.shape[-2:])
            x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        x = self.norm(self.conv(x))
        return x if self.linear else F.relu6(x)

    def _missing(self, side: int) -> int:
        """Pixels of padding that a side needs."""
        return max((-(-side // self.stride) - 1) * self.stride + self.kernel - side, 0)

    def fuse(self) -> None:
        """Fold the norm, as it is in evaluation, into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()


class InvertedBottleneck(nn.Module):
    """Expand, a depthwise convolution, project; added to the input where the shape is the same (Sandler 2018)."""

    def __init__(self, wide: int, stage: Stage, stride: int):
        super().__init__()
        inner = wide * stage.expansion
        layers = [Convolution(wide, inner)] if stage.expansion > 1 else []
        depthwise = Convolution(inner, inner, stage.kernel, stride, groups=inner)
        self.layers = nn.Sequential(*layers, depthwise, Convolution(inner, stage.width, linear=True))
        self.residual = stride == 1 and wide == stage.width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetLite0(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> features [B, 1280]: the head's channels, averaged over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, 2)
        self.stages = nn.ModuleList()
        for wide, stage in zip([STEM, *(stage.width for stage in STAGES)], STAGES, strict=False):
            first = InvertedBottleneck(wide, stage, stage.stride)
            others = [InvertedBottleneck(stage.width, stage, 1) for _ in range(stage.blocks - 1)]
            self.stages.append(nn.Sequential(first, *others))
        self.head = Convolution(STAGES[-1].width, WIDTH)

    def maps(self, image: Tensor) -> list[Tensor]:
        """The last map of each size: of 16, 24, 40, 112 and 320 channels, with 1/2 to 1/32 of the side, rounded up."""
        x = self.stem(
            (image * 127.5 + 0.5) / 128
        )  # (pixel - 127) / 128 of pixels from 0 to 255, as in its training
        maps: list[Tensor] = []
        for blocks, stage in zip(self.stages, STAGES, strict=True):
            x = blocks(x)
            if stage.stride == 1 and maps:
                maps.pop()
            maps.append(x)
        return maps

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.maps(image)[-1]).mean((2, 3))

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold every norm into its convolution: the same features in less time. Only in evaluation."""
        for layer in [layer for layer in self.modules() if isinstance(layer, Convolution)]:
            layer.fuse()
