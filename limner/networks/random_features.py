"""A fixed random convolutional network whose feature maps images are compared in."""

import math

from torch import Tensor, nn
from torch.nn import functional as F


class RandomFeatures(nn.Module):
    """Image [B, C, H, W] -> one map a stage, each with half the side of the last, from weights that are never trained.

    Random filters tell edges, corners and textures apart. But neighbouring pixels are similar, so plain random
    filters mostly see the mean: half of the first layer's filters sum to 0 instead, with ``edge_gain`` times the
    weight. The first map has the full side, because means of 2x2 pixels would hide patterns within them.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], edge_gain: float):
        super().__init__()
        self.stages = nn.ModuleList()
        for wide in widths:
            pair = [nn.Conv2d(inputs, wide, 3, padding=1) for inputs in (channels, wide)]
            self.stages.append(nn.ModuleList(pair))
            channels = wide
        layers = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight, math.sqrt(2))
            nn.init.normal_(layer.bias, std=0.1)  # type: ignore[arg-type]
        half = layers[0].weight.detach()[::2]
        half.sub_(half.mean((2, 3), keepdim=True)).mul_(edge_gain)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for stage in self.stages:
            if maps and min(x.shape[-2:]) > 1:
                x = F.avg_pool2d(x, 2, ceil_mode=True)  # [B, Wl, h/2, w/2]
            for layer in stage.children():
                x = F.leaky_relu(layer(x), 0.2)  # [B, Wl, h, w]
            maps.append(x)
        return maps
