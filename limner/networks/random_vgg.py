"""A VGG-like network with fixed random weights, for image features without a download."""

import functools
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RandomVGG(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> feature maps by stage, fine to coarse; ``stages`` are its convolutions' channels.

    Weights are orthogonal, and ``calibrate`` scales and shifts each channel to mean 0 and variance 1 on given images:
    otherwise the features of a deep random network hardly differ between images. Each stage but the first begins
    with max pooling.
    """

    def __init__(self, stages: Sequence[Sequence[int]], generator: torch.Generator):
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for widths in stages:
            convolutions = nn.Sequential()
            for width in widths:
                convolution = nn.Conv2d(channels, width, 3, padding=1)
                nn.init.orthogonal_(convolution.weight, generator=generator)
                convolution.bias.data.zero_()  # type: ignore[union-attr]
                convolutions.append(convolution)
                channels = width
            self.stages.append(convolutions)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, calibrate: bool = False) -> list[Tensor]:
        maps = []
        for i, stage in enumerate(self.stages):
            if i:
                x = F.max_pool2d(x, 2)  # [B, C, H/2^i, W/2^i]
            for convolution in stage.children():
                x = convolution(x)
                if calibrate:
                    assert isinstance(convolution, nn.Conv2d)
                    x = standardise(convolution, x)
                x = F.relu(x)  # [B, C, H/2^i, W/2^i]
            maps.append(x)
        return maps

    @torch.no_grad()
    def calibrate(self, pictures: Tensor) -> Self:
        self(pictures, calibrate=True)
        return self


def standardise(convolution: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution's output [B, C, ...] with mean 0 and deviation 1 a channel; its weights now give that."""
    others = (0, *range(2, x.ndim))
    mean, std = x.mean(others), x.std(others).clamp(min=1e-6)  # [C]
    assert convolution.bias is not None
    convolution.weight.div_(std.view(-1, *[1] * (x.ndim - 1)))
    convolution.bias.sub_(mean).div_(std)
    mean, std = (each.view(-1, *[1] * (x.ndim - 2)) for each in (mean, std))
    return (x - mean) / std


@functools.cache
def random_network(device: torch.device) -> RandomVGG:
    """The network of perceptual losses by default: fixed random weights, as nothing is downloaded.

    They differ from those of limner.metrics' default features, which would otherwise measure what was trained on.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        network = RandomVGG(((16, 16), (32, 32), (64, 64)), generator).calibrate(dead_leaves(64, generator))
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def dead_leaves(n: int, generator: torch.Generator, side: int = 32) -> Tensor:
    """[n, 3, side, side] in [-1, 1]: overlapping discs of all sizes, as statistics of photographs (Ruderman 1997)."""
    grid = (torch.arange(side) + 0.5) / side
    pictures = torch.zeros(n, 3, side, side)
    for _ in range(60):
        x, y, size = torch.rand(3, n, 1, 1, generator=generator)
        radius = 0.05 / (0.06 + size)
        colour = torch.rand(n, 3, 1, 1, generator=generator) * 2 - 1
        inside = ((grid[None, None, :] - x) ** 2 + (grid[None, :, None] - y) ** 2 < radius**2)[:, None]
        pictures = torch.where(inside, colour, pictures)
    return pictures
