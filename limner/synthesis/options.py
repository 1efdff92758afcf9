"""Options of the commands that make training data or measure its use; help needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from limner import families
from limner.fields import Checked, Count, PositiveShare, Seed


@dataclass(frozen=True, kw_only=True)
class SynthesizeOptions(Checked):
    """What a folder of synthetic images holds."""

    n: Count = 10_000  # number of images in the finished folder
    label: tuple[str, ...] = ()  # draw only this class
    prompt: tuple[str, ...] = ()  # what the images should show
    prompts_from: str = ""  # source whose captions are used. Default: the images that the run was trained on
    like: str = ""  # source: keep only images that resemble one of its training images
    # source: leave out images that are nearer to one of its training images than held-out images are
    new: str = ""
    classifier: str = ""  # run that classifies: keep only images that it recognises as the requested class
    confidence: PositiveShare = 0.9  # lowest probability of the requested class by --classifier
    features: str = "random"  # for --like: random, imagenet, inception, clip, dinov2, or a run
    weights: str = ""  # file or folder of the features' weights, if they need any
    seed: Seed = 0  # of the first image; each image has its own
    batch: int = 64  # images drawn at once


@dataclass(frozen=True, kw_only=True)
class TrainingDataOptions(Checked):
    """How classifiers are trained on real and on synthetic images."""

    classifier_family: str = families.CLASSIFIER  # of the classifiers of --as-training-data
    classifier_preset: str = ""  # tiny, small, base or paper. Default: small on a CPU, base on a GPU
    classifier_budget: str = "60kimg"  # of each training: the same for real, synthetic and both
    # classifiers of each kind, each with its own seed: 3 show a difference of several points, 5 or more a smaller one;
    # with 1 there is no verdict, since equal classifiers differ by their seed
    repeats: int = 3
