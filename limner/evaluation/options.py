"""Options of the commands that measure. Nothing here imports torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from limner.fields import Bounds, Checked, Count, Seed


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Checked):
    """How a run or a folder of images is measured."""

    # images or clips to draw or to read. Default: 1000 images or 256 clips, or the number of real ones if lower
    n: Count | None = None
    # auto (random, and imagenet beside it where limner[imagenet] is installed), random, imagenet, inception, clip,
    # dinov2, or a run that describes images; of clips also i3d, or a run that describes clips
    features: str = "auto"
    weights: str = ""  # file or folder of the features' weights, if they need any
    # frames of a clip, to measure a folder of clips; 1: images. A run knows its own
    clip_frames: Annotated[int, Bounds(1, 4096)] = 1
    # frames a second, to measure a folder of clips. Default: that of the files
    clip_rate: Annotated[float, Bounds(0, 1000, above=True)] | None = None
    # neighbours of precision, recall, density and coverage. Default: 3 for the first two, 5 for the others
    k: Count | None = None
    # also probe a run's features with this many labelled images per class; 0: do not
    labels_per_class: int = 0
    matches: str = (
        ""  # run that compares images with texts (clip): also measure how well images follow prompts
    )
    seed: Seed = 0  # of the first image drawn


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Checked):
    """How families are trained and measured, all alike."""

    budget: str = "5m"  # length of each training
    preset: str = ""  # tiny, small, base or paper. Default: small on a CPU, base on a GPU
    size: str = ""  # of the images: 32, or HEIGHTxWIDTH as in 64x48. Default: as for limner train
    # images or clips to draw with each. Default: 1000 images or 256 clips, or the number of real ones if lower
    n: Count | None = None
    # auto (random, and imagenet beside it where limner[imagenet] is installed), random, imagenet, clip or dinov2
    features: str = "auto"
    # neighbours of precision, recall, density and coverage. Default: 3 for the first two, 5 for the others
    k: Count | None = None
    seed: Seed = 0  # of every training, and of the first image drawn
