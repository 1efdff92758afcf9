"""A (2+1)D network with fixed random weights (after Tran 2018), for features of clips without a download."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.random_vgg import standardise

DISCS = 60  # of a clip of moving leaves
SPEED = 2.0  # pixels a frame along each axis, at most


class RandomClips(nn.Module):
    """[B, 3, T, H, W] in [-1, 1] -> maps [B, C, T, h, w] by stage, fine to coarse; ``stages`` are the channels.

    Each layer is a 1x3x3 convolution and a 3x1x1 one. Half of the filters over time sum to 0, so they see change
    alone. Weights are orthogonal, and ``calibrate`` scales and shifts each channel to mean 0 and variance 1 on given
    clips. Each stage but the first begins with max pooling of each frame.
    """

    def __init__(self, stages: Sequence[Sequence[int]], generator: torch.Generator):
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for widths in stages:
            convolutions = nn.Sequential()
            for width in widths:
                space = nn.Conv3d(channels, width, (1, 3, 3), padding=(0, 1, 1))
                time = nn.Conv3d(width, width, (3, 1, 1))
                for convolution in (space, time):
                    nn.init.orthogonal_(convolution.weight, generator=generator)
                    convolution.bias.data.zero_()  # type: ignore[union-attr]
                    convolutions.append(convolution)
                change = time.weight.data[::2]
                change -= change.mean(2, keepdim=True)
                channels = width
            self.stages.append(convolutions)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, calibrate: bool = False) -> list[Tensor]:
        maps = []
        for i, stage in enumerate(self.stages):
            if i:
                x = F.max_pool3d(x, (1, 2, 2))  # [B, C, T, H/2^i, W/2^i]
            for convolution in stage.children():
                assert isinstance(convolution, nn.Conv3d)
                if convolution.kernel_size[0] > 1:  # the first and the last frame stand still outside
                    x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
                x = convolution(x)  # [B, C, T, H/2^i, W/2^i]
                if calibrate:
                    x = standardise(convolution, x)
                x = F.relu(x)
            maps.append(x)
        return maps

    @torch.no_grad()
    def calibrate(self, clips: Tensor) -> Self:
        self(clips, calibrate=True)
        return self


def moving_leaves(n: int, generator: torch.Generator, frames: int = 16, side: int = 32) -> Tensor:
    """[n, 3, frames, side, side] in [-1, 1]: overlapping discs of all sizes, each with a velocity of its own.

    ``dead_leaves`` (networks/random_vgg.py) in motion: the speed of a disc is uniform up to SPEED pixels a frame.
    """
    grid = (torch.arange(side) + 0.5) / side
    time = (torch.arange(frames) - (frames - 1) / 2)[:, None, None] / side  # [T, 1, 1]
    clips = torch.zeros(n, 3, frames, side, side)
    for _ in range(DISCS):
        x, y, size, right, down, speed = torch.rand(6, n, 1, 1, 1, generator=generator)
        radius = 0.05 / (0.06 + size)
        x = 1.5 * x - 0.25 + (2 * right - 1) * SPEED * speed * time  # [n, T, 1, 1]
        y = 1.5 * y - 0.25 + (2 * down - 1) * SPEED * speed * time
        colour = torch.rand(n, 3, 1, 1, 1, generator=generator) * 2 - 1
        inside = ((grid - x) ** 2 + (grid[:, None] - y) ** 2 < radius**2)[:, None]  # [n, 1, T, side, side]
        clips = torch.where(inside, colour, clips)
    return clips
