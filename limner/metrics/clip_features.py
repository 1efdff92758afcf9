"""Networks that turn a clip into one feature vector, in which clips are compared. Nothing here downloads."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.metrics.features import Features, resize_frames
from limner.metrics.pretrained import read_weights
from limner.networks.i3d import I3D, LEAST_FRAMES, SIDE
from limner.networks.images.channels import with_channels
from limner.networks.random_clips import RandomClips, moving_leaves
from limner.settings import LimnerError

STAGES = ((24,), (48,), (96,))  # channels of each stage's layers
PROJECTED = 16  # dimensions of each part of the features
OFFSET = 0.2  # before logarithms, in standard deviations of moving leaves: so that still clips are not infinitely far
# Of the whole, of quarters of the picture, and of the course of time, which varies less between clips than the others
WEIGHTS = 1.0, 0.7, 2.5
PART = 8  # clips at a time: more take memory and no less time


@cache
def random_clips() -> Features:
    """The default features of clips: of a random (2+1)D network, calibrated on moving leaves; 48 values.

    Three parts, each projected to 16: logarithms of the means of all maps, the same over each quarter of the picture,
    and how they change from the first quarter of the time to the last. Without the last part, a clip that is played
    backwards would hardly differ. No family may train on this network.
    """
    generator = torch.Generator().manual_seed(64)
    network, leaves = RandomClips(STAGES, generator), moving_leaves(16, generator)
    network.calibrate(leaves)
    channels = sum(widths[-1] for widths in STAGES)
    projections = [
        torch.randn(size, PROJECTED, generator=generator) / size**0.5
        for size in (channels, 4 * channels, channels)
    ]

    def describe(clips: Tensor) -> Tensor:
        means = [F.adaptive_avg_pool3d(x, (4, 2, 2)) for x in network(clips)]
        logs = [(x + OFFSET).log() for x in _parts(torch.cat(means, 1))]
        parts = logs[0], logs[1].flatten(1), logs[2][:, :, 3] - logs[2][:, :, 0]
        return torch.cat([w * x @ m for w, x, m in zip(WEIGHTS, parts, projections, strict=True)], 1)

    with torch.no_grad():
        known = describe(leaves)
    centre, scale = known.mean(0), known.var(0).mean().sqrt()

    @torch.no_grad()
    def extract(clips: Tensor) -> Tensor:
        side = 32 if max(clips.shape[-2:]) <= 32 else 64
        parts = resize_frames(with_channels(clips, 3), side, side).split(PART)
        return (torch.cat([describe(part) for part in parts]) - centre) / scale

    recipe = f"RandomClips 1 {STAGES} {PROJECTED} {OFFSET} {WEIGHTS}"
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    resized = "frames bicubic to 32x32, larger ones to 64x64"
    return Features("random", digest, resized, extract, side=64, clips=True)


def _parts(means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means [B, C, 4, 2, 2] over four parts of the time and of the picture -> [B, C], [B, C, 2, 2] and [B, C, 4]."""
    return means.mean((2, 3, 4)), means.mean(2), means.mean((3, 4))


def i3d(path: str | Path) -> Features:
    """The FVD's features (Unterthiner 2018): I3D's logits of Kinetics-400, from a safetensors file of its weights.

    The weights have the names of pytorch-i3d's ``rgb_imagenet``. Raises LimnerError where the file is missing, of
    another kind, or does not fit, and for clips of fewer than LEAST_FRAMES frames.
    """
    network = I3D()
    digest = read_weights(network, path, "i3d", "the weights rgb_imagenet of pytorch-i3d")

    def bilinear(frames: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(frames, (height, width), mode="bilinear", align_corners=False)

    def extract(clips: Tensor) -> Tensor:
        if clips.shape[2] < LEAST_FRAMES:
            raise LimnerError(
                f"The features i3d take clips of at least {LEAST_FRAMES} frames, and these have {clips.shape[2]}: name "
                "other features."
            )
        parts = with_channels(clips, 3).split(1)  # at 224x224 one clip takes a gigabyte
        return torch.cat([network(resize_frames(part, SIDE, SIDE, bilinear)) for part in parts])

    return Features("i3d", digest, f"frames bilinear to {SIDE}x{SIDE}", extract, side=SIDE, clips=True)


def of_frames(features: Features) -> Features:
    """Features of images, for one frame of each clip: see ``evaluation.images.Images.frames``."""
    return replace(features, name=f"{features.name} on frames")
