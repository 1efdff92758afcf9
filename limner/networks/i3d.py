"""I3D (Carreira and Zisserman 2017): Inception v1 with filters that reach over time, as the FVD takes it."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 400  # of Kinetics-400
SIDE = 224  # pixels
LEAST_FRAMES = 9  # which three halvings leave two of, for the last mean
# Channels of each block's branches: 1x1, 1x1 and 3x3, 1x1 and 3x3, 1x1 after pooling.
_BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32), "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64), "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64), "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128), "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip

Sides = tuple[int, int, int]  # of time, height and width


def _pad(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Zeros around x [B, C, T, H, W], so that every ``stride``th place gets an output, the odd one at the end."""
    sides: list[int] = []
    for size, reach, step in zip(x.shape[2:], kernel, stride, strict=True):
        missing = max(reach - (size % step or step), 0)
        sides = [missing // 2, missing - missing // 2, *sides]  # the last axis comes first
    return F.pad(x, sides)


class Unit(nn.Module):
    """Convolution, normalisation, ReLU; the last one of the network has neither of these."""

    def __init__(self, wide: int, out: int, kernel: int = 1, stride: int = 1, last: bool = False):
        super().__init__()
        self.conv3d = nn.Conv3d(wide, out, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(_pad(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class MaxPool(nn.Module):
    def __init__(self, kernel: Sides, stride: Sides):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_pad(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches over one input, concatenated."""

    def __init__(self, wide: int, channels: Sequence[int]):
        super().__init__()
        a, b, c, d, e, f = channels
        self.b0 = Unit(wide, a)
        self.b1a, self.b1b = Unit(wide, b), Unit(b, c, 3)
        self.b2a, self.b2b = Unit(wide, d), Unit(d, e, 3)
        self.b3a, self.b3b = MaxPool((3, 3, 3), (1, 1, 1)), Unit(wide, f)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, dim=1)


class I3D(nn.Sequential):
    """[B, 3, T, 224, 224] in [-1, 1] -> logits [B, 400], the mean over time; T is at least LEAST_FRAMES.

    The names of its weights are those of the file ``rgb_imagenet`` of pytorch-i3d.
    """

    def __init__(self) -> None:
        halving = {  # pooling that comes after a layer
            "Conv3d_1a_7x7": MaxPool((1, 3, 3), (1, 2, 2)), "Conv3d_2c_3x3": MaxPool((1, 3, 3), (1, 2, 2)),
            "Mixed_3c": MaxPool((3, 3, 3), (2, 2, 2)), "Mixed_4f": MaxPool((2, 2, 2), (2, 2, 2)),
        }  # fmt: skip
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            Conv3d_1a_7x7=Unit(3, 64, 7, 2), Conv3d_2b_1x1=Unit(64, 64), Conv3d_2c_3x3=Unit(64, 192, 3)
        )
        wide = 192
        for name, channels in _BLOCKS.items():
            layers[name] = Mixed(wide, channels)
            wide = channels[0] + channels[2] + channels[4] + channels[5]
        layers["logits"] = Unit(wide, CLASSES, last=True)
        super().__init__(layers)
        self.halving = halving

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            if name == "logits":
                x = F.avg_pool3d(x, (2, 7, 7), 1)  # [B, 1024, T/8 - 1, 1, 1]
            x = layer(x)
            if name in self.halving:
                x = self.halving[name](x)
        return x.mean((2, 3, 4))  # [B, 400]
