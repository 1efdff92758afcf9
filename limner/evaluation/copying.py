"""Which training image each drawn one is nearest to, how many are copies, and a sheet of the nearest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limner.data import Data
from limner.evaluation.images import Images, channels_of
from limner.evaluation.real import MIN_IMAGES, Real
from limner.metrics.copies import Matches, Originals
from limner.metrics.memorised import Memorised, memorised, threshold
from limner.progress import Watch, ignore, part

HELD_OUT = 1000  # held-out images that are looked at, at most
LEAST_SIDE = 8  # pixels, below which changes of an image cannot be told
PAIRS = 16  # on the sheet of nearest training images


@dataclass(frozen=True)
class Copies:
    """What was found of drawn images."""

    matches: Matches  # with training images, or with held-out ones where none was trained on
    original: str  # training or real, whichever those are
    memorised: Memorised | None
    absent: str | None = None  # why it was not measured


def find_copies(drawn: Data | Tensor, real: Real, watch: Watch = ignore) -> Copies:
    """Search the drawn images for copies of training images, under the changes of ``limner.metrics.copies``.

    The distances of held-out images, HELD_OUT of them at most, say how near is unusual.
    """
    whole, channels = real.whole, _channels(drawn, real)
    originals, name = (whole.training, "training") if len(real.training) else (whole.held_out, "real")
    absent = why_not_measured(real)
    held_out = few_held_out(whole.held_out)
    total = len(drawn) + (0 if absent else len(held_out))
    searched = Originals(Images.of(originals, channels))
    matches = searched.nearest(Images.of(drawn, channels), part(watch, 0, len(drawn) / total))
    if absent:
        return Copies(matches, name, None, absent)
    rest = part(watch, len(drawn) / total, len(held_out) / total)
    usual = searched.nearest(Images.of(held_out, channels), rest).distance
    changes = matches.kinds(matches.distance <= threshold(usual))
    return Copies(matches, name, memorised(matches.distance, usual, changes))


def few_held_out(held_out: Data) -> Data:
    """HELD_OUT of the held-out images at most, always the same."""
    return held_out.part(held_out.order(0, HELD_OUT, 0)) if len(held_out) > HELD_OUT else held_out


def _channels(drawn: Data | Tensor, real: Real) -> int:
    return max(map(channels_of, (drawn, real.whole.training, real.whole.held_out)))


def why_not_measured(real: Real) -> str | None:
    """Why copies cannot be counted here; None if they can."""
    if not len(real.training):
        return "no real image counts as trained on"
    if len(real.held_out) < MIN_IMAGES:
        are = "is" if len(real.held_out) == 1 else "are"
        held = f"{len(real.held_out):,} of the {len(real):,} real ones {are} held out"
        if real.held_out.twins:
            held += f", {real.held_out.twins:,} more having twins among those that were trained on"
        return f"it takes {MIN_IMAGES} held-out images, and {held} (add images, or train with a larger --data.holdout)"
    height, width = real.training.spec.height, real.training.spec.width
    if min(height, width) < LEAST_SIDE:
        return f"it takes {LEAST_SIDE} pixels a side, and the images have {height}x{width}"
    return None


def nearest_pairs(
    drawn: Data | Tensor, real: Real, copies: Copies, count: int = PAIRS
) -> tuple[Tensor, list[str]]:
    """The images nearest to an original, each followed by it: [2 count, C, H, W], and their captions."""
    channels, matches = _channels(drawn, real), copies.matches
    source = real.whole.training if copies.original == "training" else real.whole.held_out
    closest = matches.distance.argsort(stable=True)[:count]
    rows = closest.tolist()
    pairs = (
        Images.of(drawn, channels)[closest.numpy()],
        Images.of(source, channels)[matches.index[closest].numpy()],
    )
    captions = [
        word
        for i in rows
        for word in (
            f"drawn: {matches.changes[i]}",
            f"{copies.original}, {matches.distance[i]:.1f} levels away",
        )
    ]
    return torch.stack(pairs, dim=1).flatten(0, 1), captions
