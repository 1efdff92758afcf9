"""What families that paint a picture in a style share: the features of their losses, channels, strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limner.core import ImageSpec
from limner.losses.perceptual import check_network, default_network, feature_maps
from limner.networks.images.channels import with_channels
from limner.settings import LimnerError

COARSEST = 8  # halvings of the coarsest feature map's side
LEAST = 16  # pixels a side of images to train on, and of style pictures


@dataclass(frozen=True)
class FeatureOptions:
    """Which network's feature maps the losses compare, and how."""

    may_be_zero: ClassVar[tuple[str, ...]] = ("content_map",)

    # of the losses: imagenet, random, or a safetensors file of VGG's weights; auto: imagenet where it is installed
    perceptual_network: str = "auto"
    content_map: int = 1  # which of its maps holds the content, from 0: the finest
    content: float = 1.0  # weight of the content loss
    # each map's losses are over the mean square of what they aim at, so that weights fit any network of features
    relative: bool = True

    @property
    def features(self) -> str:
        return default_network() if self.perceptual_network == "auto" else self.perceptual_network


def maps_of(options: FeatureOptions, image: Tensor, layers: Sequence[str]) -> list[Tensor]:
    """Feature maps, fine to coarse, down to a side of 1/COARSEST; of a VGG those of ``layers``.

    Coarser ones have too few places for statistics: on a crop of 128 pixels from a painting, the Gram matrix of a map
    of 1/32 differs from the whole painting's as much as a photograph's does.
    """
    maps = feature_maps(options.features, image, layers)
    return [x for x in maps if COARSEST * (x.shape[-1] + 1) > image.shape[-1]]


def check_features(options: FeatureOptions, layers: Sequence[str]) -> None:
    """Raises LimnerError, before training, for a network that is not here or has too few maps."""
    check_network(options.features, layers)
    maps = len(maps_of(options, torch.zeros(1, 3, 64, 64), layers))
    if options.content_map >= maps:
        raise LimnerError(
            f"--model.content-map {options.content_map} is too high, since {options.features} has {maps} feature maps: "
            f"choose 0 to {maps - 1}."
        )


def check_size(family: str, spec: ImageSpec) -> None:
    """Raises LimnerError for images that the losses see nothing in."""
    if min(spec.height, spec.width) < LEAST:
        raise LimnerError(
            f"{family} needs images of at least {LEAST}x{LEAST} pixels, not {spec.height}x{spec.width}: choose a "
            "larger --size."
        )


def colours(spec: ImageSpec) -> int:
    """The channels that are painted: alpha is kept from the given picture."""
    return min(spec.channels, 3)


def painted(image: Tensor, paint: Callable[[Tensor], Tensor], strength: float) -> Tensor:
    """``paint`` applied to the colours of [B, C, H, W] and clamped, by the share ``strength``; alpha stays.

    Premultiplied colours are seen over white, and what is painted is premultiplied again.
    """
    channels = min(image.shape[1], 3)
    made = paint(with_channels(image, channels)).clamp(-1, 1)
    if image.shape[1] == 4:
        alpha = image[:, 3:]
        made = torch.cat([(made + 1) * (alpha + 1) / 2 - 1, alpha], dim=1)
    return torch.lerp(image, made, strength)  # [B, C, H, W]


def to_bytes(picture: Tensor) -> Tensor:
    """[-1, 1] -> uint8, to keep pictures in a buffer."""
    return ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
