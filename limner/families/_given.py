"""What families that make pictures from given ones share."""

from __future__ import annotations

from torch import Tensor

from limner.core import ImageSpec, Model
from limner.networks.images.bicubic import bicubic_to
from limner.settings import LimnerError

SMALLEST = 8  # pixels a side that discriminators of patches need


def given_spec(model: Model, instead: str = "") -> ImageSpec:
    """What the data gives. Raises ``none_given`` for data that gives nothing."""
    if model.spec.given is None:
        raise none_given(model, instead)
    return model.spec.given


def none_given(model: Model, instead: str = "") -> LimnerError:
    """``instead``: what else a person can do."""
    return LimnerError(
        f"{model.family} makes its images from given pictures, and the data gives none: name two sources, the given "
        f"pictures first{instead}."
    )


def whole_scale(model: Model) -> int:
    """Pixels a side of an image for each of the given picture. Raises LimnerError where that is no whole number."""
    spec, given = model.spec, given_spec(model)
    scale = spec.height // given.height
    if (given.height * scale, given.width * scale) != (spec.height, spec.width):
        raise LimnerError(
            f"{model.family} needs images a whole number of times as large as the given pictures, and {spec.height}x"
            f"{spec.width} is not for {given.height}x{given.width}: set --data.given-size or --size."
        )
    return scale


def enlarge(given: Tensor, scale: int) -> Tensor:
    """[B, C, h, w] -> [B, C, scale h, scale w]"""
    if scale == 1:
        return given
    height, width = given.shape[-2:]
    return bicubic_to(given, (scale * height, scale * width))
