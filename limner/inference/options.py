"""Options of the commands that use a run. Nothing here imports torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

By = Literal["auto", "pca", "jacobian", "weights"]


@dataclass(frozen=True, kw_only=True)
class ExploreOptions:
    """What the sheets of a latent space show."""

    label: tuple[str, ...] = ()  # class to show
    start: tuple[str, ...] = ()  # .safetensors of limner project: images of your own
    rows: int = 6  # interpolations
    columns: int = 9  # images in each interpolation
    directions: int = 6  # directions shown
    # where directions come from: pca of the points, the jacobian of the images, or the first layer's weights
    by: By = "auto"
    truncation: float = 1.0  # below 1: points nearer to the centre, for safer images that are more alike
    seed: int = 0  # of the first image


@dataclass(frozen=True, kw_only=True)
class ProjectOptions:
    """How the point of a picture is searched for."""

    steps: int = 300  # optimisation steps
    label: str = ""  # class of the picture. Default: the class that comes nearest
    rate: float = 0.3  # learning rate, in standard deviations of the latent dimensions
    prior: float = 0.001  # pull towards the centre; higher: an image more like the run's own
    # a point per layer, if the run supports it: nearer, but less like its own images
    each_layer: bool = False
    tries: int = 256  # random starting points; only the nearest few are optimised
    seed: int = 0  # of the first starting point
