"""What all families that denoise share when they draw: knobs, guidance, image to image, inpainting.

A family says how it guesses the clean data; ``draw`` does the rest, with any solver, on the family's path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.core import Canvas, Condition, Draws, LimnerError
from limner.diffusion import solvers
from limner.diffusion.guidance import guide
from limner.diffusion.paths import Level, Path

Solver = Literal["ancestral", "ddim", "euler", "heun", "dpm2m", "dpm3m", "unipc"]


class Guess(NamedTuple):
    """What a network makes of x at a level."""

    data: Tensor  # the clean data, [B, ...]
    spread: Tensor | float = 0.0  # which variance an ancestral step draws with (see solvers.ancestral)


Predict = Callable[[Tensor, Level], Guess]


@dataclass(frozen=True)
class Knobs:
    """How to sample; families change the defaults, not the meaning."""

    steps: int = 32  # steps from noise to image
    solver: Solver = "dpm2m"  # one network call a step; heun: two; with a mask always ancestral
    guidance: float = 2.0  # how strongly to follow the condition; 1: as trained
    guide_from: float = 0.0  # guide only where signal / (signal + noise) is at least this
    guide_to: float = 1.0  # and at most this
    weaker: str = field(
        default="", metadata={"run": True}
    )  # run to be guided away from: this one, less trained
    eta: float = 0.0  # ddim: noise drawn in each step; 1: as much as ancestral
    churn: float = 0.0  # heun: noise added back over all steps
    strength: float = (
        0.7  # with an image and no mask: share of the way back to noise that it is taken; 1: all of it
    )
    repaints: int = 4  # with a mask: times that each step is taken, so that old and new agree

    def __post_init__(self) -> None:
        """Raises LimnerError for what draws nothing."""
        at_least_one("steps", self.steps)
        at_least_one("repaints", self.repaints)
        if not 0 <= self.eta <= 1:
            raise LimnerError(f"--eta {self.eta:g} is no share of an ancestral step's noise: choose 0 to 1.")
        shift = getattr(self, "shift", 1.0)  # where the path has one
        if shift <= 0:
            raise LimnerError(f"--shift {shift:g} leads nowhere: choose above 0; 1 is none.")


def at_least_one(name: str, count: int) -> None:
    if count < 1:
        raise LimnerError(f"--{name} {count} draws nothing: choose 1 or more.")


def draw(
    predict: Predict,
    path: Path,
    levels: Sequence[Level],
    knobs: Knobs,
    draws: Draws,
    shape: Sequence[int],
    condition: Condition,
    *,
    weak: Predict | None = None,
    clip: float = 0.0,
    guided: int = 0,
    encode: Callable[[Tensor], Tensor] = lambda image: image,
    decode: Callable[[Tensor], Tensor] = lambda data: data,
) -> Iterator[Canvas]:
    """Canvases from noise to image, [B, *shape] inside and [B, C, H, W] in [-1, 1] on them.

    ``weak`` is what ``knobs.guidance`` leads away from: the first ``guided`` channels, or all where it is 0. Guesses
    are clipped to +-``clip`` unless it is 0. With ``condition.image``, sampling starts from that image, noised; with a
    mask too, only what it marks is drawn anew.
    """
    k = knobs

    def noise() -> Tensor:
        return draws.normal(*shape)

    def guess(x: Tensor, level: Level) -> Guess:
        found = predict(x, level)
        data = found.data
        if weak is not None and k.guidance != 1 and k.guide_from <= level.share <= k.guide_to:
            led = guide(data, weak(x, level).data, k.guidance)
            data = torch.cat([led[:, :guided], data[:, guided:]], dim=1) if guided else led
        return Guess(data.clamp(-clip, clip) if clip else data, found.spread)

    def denoise(x: Tensor, level: Level) -> Tensor:
        return guess(x, level).data

    known = mask = None
    if condition.image is not None:
        known = encode(condition.image)
        if condition.mask is not None:
            mask = shrink(condition.mask.float(), known.shape[-2:]).gt(0).expand_as(known)
        else:
            if not 0 < k.strength <= 1:
                raise LimnerError(
                    f"--strength {k.strength} is no share of the way to noise: choose above 0, up to 1."
                )
            steps = len(levels) - 1
            levels = levels[steps - max(1, round(k.strength * steps)) :]
    x = levels[0].sigma * noise()
    if known is not None and mask is None:
        x = x + levels[0].alpha * known

    if mask is not None and known is not None:
        solve = solvers.repaint(denoise, x, levels, noise, known, mask, k.repaints)
    elif k.solver == "ancestral":
        solve = solvers.ancestral(guess, x, levels, noise)
    elif k.solver == "ddim":
        solve = solvers.ddim(denoise, x, levels, k.eta, noise)
    elif k.solver == "heun":
        solve = solvers.heun(denoise, x, levels, k.churn, noise, path.at)
    else:
        solve = PLAIN[k.solver](denoise, x, levels)

    def picture(x: Tensor) -> Tensor:
        image = decode(x).clamp(-1, 1)
        if condition.image is not None and condition.mask is not None:  # what was to stay stays, to the pixel
            image = torch.where(condition.mask > 0, image, condition.image)
        return image

    for done, x in enumerate(solve, start=1):
        yield Canvas(done, len(levels) - 1, partial(picture, x))


def shrink(mask: Tensor, size: Sequence[int]) -> Tensor:
    """[B, 1, H, W] -> its means [B, 1, h, w], where each place of a code stands for as many whole pixels a side.

    Where sides do not divide, codes cover the image with its last row and column repeated, and so does this.
    """
    wanted = [-(-side // places) * places for side, places in zip(mask.shape[-2:], size, strict=True)]
    more = [whole - side for whole, side in zip(wanted, mask.shape[-2:], strict=True)]
    return F.interpolate(F.pad(mask, (0, more[1], 0, more[0]), mode="replicate"), list(size), mode="area")


PLAIN: dict[str, Callable[[solvers.Denoise, Tensor, Sequence[Level]], Iterator[Tensor]]] = {
    "euler": solvers.euler,
    "dpm2m": solvers.dpm_2m,
    "dpm3m": solvers.dpm_3m,
    "unipc": solvers.unipc,
}


def weaker(
    knobs: Knobs, model: Any, condition: Condition, alike: Callable[[Any], bool] = lambda other: True
) -> Predict | None:
    """What guidance leads away from: the run in ``knobs.weaker``, opened by who draws, or no condition.

    None where guidance is off or nothing is asked for. ``alike`` says whether a run's noise is the model's.
    Raises LimnerError when that run is of another family, size, noise or classes.
    """
    other: Any = knobs.weaker
    if knobs.guidance == 1:
        return None
    if not other:
        told = ("label", condition.label), ("text", condition.text)
        if not any(kind in model.follows and asked is not None for kind, asked in told):
            return None
        return model.denoiser(Condition(condition.size))
    if type(other) is not type(model) or other.spec.shape != model.spec.shape:
        raise LimnerError("--weaker needs a run of the same family on images of the same size.")
    if condition.label is not None and other.spec.classes != model.spec.classes:
        raise LimnerError("--weaker needs a run that knows the same labels.")
    if not alike(other):
        raise LimnerError(
            "--weaker needs a run with the same noise: the same settings of its steps and its codes."
        )
    return other.denoiser(condition)
