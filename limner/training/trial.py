"""How fast a training would be on images of another size: a short trial before the first step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from limner import families
from limner.data import Data
from limner.distributed import ALONE
from limner.families import _by_images as by_images
from limner.settings import LimnerError
from limner.training.loop import Loop
from limner.training.parents import parents_of


def rate_at(loop: Loop, size: tuple[int, int]) -> float:
    """Images a second of the family and preset of ``loop`` at another size (height, width), by one batch.

    0 where that is not known: the family does not take the size, builds on another run, or is compiled, or several
    processes train. Nothing of the loop is changed.
    """
    run, spec = loop.run, loop.model.spec
    if spec.frames > 1 or loop.ranks.world > 1 or run.training.compile or parents_of(run):
        return 0.0
    before, after = (by_images.Images(*each, loop.data.epoch) for each in ((spec.height, spec.width), size))
    config = by_images.resettle(run.model, before, after)
    with torch.random.fork_rng():
        try:
            model = families.build(run.family, config, replace(spec, height=size[0], width=size[1]))
        except LimnerError:
            return 0.0
        trial = Loop(replace(run, model=config), model, _resized(loop.data, size), loop.device, ALONE)
        trial.in_bf16 = loop.in_bf16
        return run.training.batch / trial.estimate_cost()[0]


def _resized(data: Data, size: tuple[int, int], most: int = 256) -> Data:
    """Some of the images at another size, by their nearest pixels: what they show costs nothing."""
    some = data.part(np.arange(min(len(data), most)))
    down, across = (
        np.arange(new) * old // new
        for new, old in zip(size, (data.spec.height, data.spec.width), strict=True)
    )
    pixels = some.array[:, down][:, :, across]
    spec = replace(data.spec, height=size[0], width=size[1])
    return replace(some, spec=spec, pixels=pixels, rows=np.arange(len(some)))
