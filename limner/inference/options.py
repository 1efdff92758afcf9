"""Options of the commands that use a run. Nothing here imports torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

By = Literal["auto", "pca", "jacobian", "weights"]


@dataclass(frozen=True, kw_only=True)
class ExploreOptions:
    """What the sheets of a latent space show."""

    label: tuple[str, ...] = ()  # class to show; may be given again
    start: tuple[str, ...] = ()  # .safetensors that limner project wrote; may be given again
    rows: int = 6  # interpolations, one a row
    columns: int = 9  # images in each interpolation
    directions: int = 6  # directions shown
    by: By = (
        "auto"  # directions from: pca of the points, jacobian of the images, or the first layer's weights
    )
    truncation: float = 1.0  # below 1: points nearer to the centre, for more typical and more similar images
    seed: int = 0  # of the first image


@dataclass(frozen=True, kw_only=True)
class ProjectOptions:
    """How the point of a picture is searched for."""

    steps: int = 300  # of Adam
    label: str = ""  # class of the picture; without it, the class that fits best
    rate: float = 0.3  # learning rate of Adam, in standard deviations of a point's coordinates
    prior: float = (
        0.001  # weight of the penalty on the distance from the centre; higher: more like the run's own
    )
    each_layer: bool = False  # a point for each layer, where the run can: closer, but less like the run's own
    tries: int = 256  # random points to start from; the best few are optimised
    seed: int = 0  # of the first random point
