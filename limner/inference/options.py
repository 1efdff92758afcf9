"""Options of the commands that use a run. Nothing here imports torch, so that help is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from limner.core import Seed

By = Literal["auto", "pca", "jacobian", "weights"]


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What to draw. Prompts and labels are used in turn."""

    prompt: str | Sequence[str] = ()  # what the images should show
    label: str | Sequence[str] = ()  # class that the images should show
    seed: int = 0  # of the first image; each image has its own seed, which always gives the same image
    # two seeds: interpolate from the image of the first to that of the second, in N images
    between: tuple[int, int] | None = None
    image: str = ""  # picture to start from, noised by --strength: draws variations of it
    mask: str = ""  # picture that is white where --image is to be repainted; the rest is kept
    batch: int = 64  # images drawn at once

    def seeds(self, n: int) -> Sequence[Seed]:
        """One for each of ``n`` images."""
        if self.between:
            return [(*self.between, i / max(n - 1, 1)) for i in range(n)]
        return range(self.seed, self.seed + n)


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
