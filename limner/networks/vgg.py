"""VGG-16 and VGG-19 without their classifiers, for perceptual and style losses. Weights come from the caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.checks import SettingsError
from limner.networks.images.channels import with_channels

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB in [0, 1]
WIDTHS = (64, 128, 256, 512, 512)  # channels, by block
CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # by block
LEAST = 32  # pixels a side that reach the last block; smaller images are enlarged

Depth = Literal[16, 19]


def layer_places(depth: Depth) -> dict[str, int]:
    """The index in ``VGG.features`` of each layer: conv1_1 (before its ReLU), relu1_1 (after it), conv1_2 and so on."""
    places, at = {}, 0
    for block, count in enumerate(CONVOLUTIONS[depth], 1):
        for i in range(1, count + 1):
            places[f"conv{block}_{i}"], places[f"relu{block}_{i}"] = at, at + 1
            at += 2
        at += 1  # pooling
    return places


class VGG(nn.Module):
    """[B, C, H, W] in [-1, 1] -> the feature maps of ``layers``, in their order (Simonyan 2015).

    It ends at the deepest of them. Its weights have torchvision's names, and expect RGB in [0, 1] less MEAN, over
    DEVIATION. Raises SettingsError for a layer that it does not have.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, depth: Depth, layers: Sequence[str]):
        super().__init__()
        places = layer_places(depth)
        if unknown := [layer for layer in layers if layer not in places]:
            raise SettingsError(
                f"VGG-{depth} has no layer {unknown[0]}; it has conv1_1, relu1_1 to {max(places)}"
            )
        self.depth, self.wanted = depth, tuple(places[layer] for layer in layers)
        steps: list[nn.Module] = []
        channels = 3
        for width, count in zip(WIDTHS, CONVOLUTIONS[depth], strict=True):
            for _ in range(count):
                steps += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            steps.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*steps[: max(self.wanted) + 1])
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> list[Tensor]:
        x, scale = with_channels(image, 3), LEAST / min(image.shape[-2:])
        if scale > 1:
            x = F.interpolate(x, scale_factor=scale, mode="bilinear")
        x = ((x + 1) / 2 - self.mean) / self.deviation  # [B, 3, H, W]
        maps = {}
        for at, step in enumerate(self.features):
            x = step(x)  # [B, C, H/2^block, W/2^block]
            if at in self.wanted:
                maps[at] = x
        return [maps[at] for at in self.wanted]
