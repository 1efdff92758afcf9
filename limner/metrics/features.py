"""Networks that turn an image into a feature vector, in which images are compared. Nothing here downloads.

Those of clips are in ``clip_features``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.core import Describes, Model
from limner.networks.images.channels import with_channels
from limner.networks.random_vgg import RandomVGG, dead_leaves
from limner.settings import LimnerError

Resize = Callable[[Tensor, int, int], Tensor]  # of [B, C, H, W] to a height and a width


@dataclass(frozen=True)
class Features:
    """A feature extractor, with what identifies it in a report.

    Of images with transparency it describes what a person sees over black and over white, and takes the mean: so
    what is transparent counts, and opaque images have the features that they have without alpha.
    """

    name: str
    hash: str  # of the weights or the recipe: figures are comparable where it is equal
    resize: str  # how images are resized first
    extract: Callable[[Tensor], Tensor]  # [B, C, H, W] in [-1, 1] -> [B, D]
    side: int = 1  # pixels that it takes of a side; of smaller images it sees less
    alpha: bool = False  # extract takes RGBA as it is
    clips: bool = False  # extract takes clips [B, C, T, H, W]

    @torch.inference_mode()
    def of(self, images: Tensor) -> Tensor:
        """[B, C, H, W] or of clips [B, C, T, H, W], alpha premultiplied -> float32 [B, D] on the CPU."""
        if images.shape[1] < 4 or self.alpha:
            return self.extract(images).float().cpu()
        features = self.extract(images[:, :3]).float()  # over black: the premultiplied colour itself
        if bool((images[:, 3:] < 1).any()):
            features = (features + self.extract(with_channels(images, 3)).float()) / 2  # and over white
        return features.cpu()


def of_model(model: Model, name: str, digest: str) -> Features:
    """The features of a trained model; images are resized to its size and channels. Raises LimnerError."""
    if not isinstance(model, Describes):
        has = f"{name} is a run of {model.family}, which has no features"
        raise LimnerError(f"{has}: name a run of another family.")
    spec = model.spec
    size, side = f"{spec.height}x{spec.width}", min(spec.height, spec.width)

    def describe(images: Tensor) -> Tensor:
        return model.features(with_channels(images, spec.channels).to(model.device))

    def of_images(images: Tensor) -> Tensor:
        return describe(resize(images, spec.height, spec.width))

    def of_clips(clips: Tensor) -> Tensor:
        if clips.shape[2] != spec.frames:
            raise LimnerError(
                f"{name} describes clips of {spec.frames} frames, and these have {clips.shape[2]}: name other features."
            )
        return describe(resize_frames(clips, spec.height, spec.width))

    alpha = spec.channels == 4
    if spec.frames > 1:
        return Features(name, digest[:12], f"frames bicubic to {size}", of_clips, side, alpha, clips=True)
    return Features(name, digest[:12], f"bicubic to {size}", of_images, side, alpha)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """[B, C, H, W] -> [B, C, height, width], bicubic with antialiasing; the same tensor where nothing changes."""
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False)


def resize_frames(clips: Tensor, height: int, width: int, how: Resize = resize) -> Tensor:
    """[B, C, T, H, W] -> [B, C, T, height, width], each frame by ``how``."""
    frames = clips.movedim(2, 1).flatten(0, 1)
    return how(frames, height, width).unflatten(0, (len(clips), -1)).movedim(1, 2)


STAGES = ((32, 32), (64, 64), (128, 128), (128, 128))  # channels of each stage's convolutions
WIDTH = 64


def random_vgg() -> Features:
    """The default features, of a random VGG (after Naeem 2020, "R64"): no download, the same on every machine.

    Naeem found that they rank generators well on images unlike ImageNet's. The maps of the four stages are
    averaged over each quarter of the image and projected to 64 dimensions. No family may train on this network.
    """
    generator = torch.Generator().manual_seed(64)
    network = RandomVGG(STAGES, generator)
    size = 4 * sum(widths[-1] for widths in STAGES)
    projection = torch.randn(size, WIDTH, generator=generator) / size**0.5
    network.calibrate(dead_leaves(64, generator))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def extract(image: Tensor) -> Tensor:
        side = 32 if max(image.shape[-2:]) <= 32 else 64
        image = resize(with_channels(image, 3), side, side)
        maps = network(image.contiguous(memory_format=torch.channels_last))
        return torch.cat([F.adaptive_avg_pool2d(x, 2).flatten(1) for x in maps], dim=1) @ projection * 10

    digest = hashlib.sha256(f"RandomVGG 1 {STAGES} {WIDTH}".encode()).hexdigest()[:12]
    return Features("random", digest, "bicubic to 32x32, images above that to 64x64", extract, side=64)
