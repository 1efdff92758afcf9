"""All frames of one clip, at the rate of a run, to go on with."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from limner.core import ImageSpec
from limner.data.clips.names import film_of
from limner.data.images import animated
from limner.data.images.formats import SUFFIXES
from limner.data.open import open_like
from limner.settings import DataOptions, LimnerError


def _open(path: str | os.PathLike[str], *size: int) -> IO[bytes]:
    return Path(path).open("rb")


def open_clip(path: str | os.PathLike[str], spec: ImageSpec, options: DataOptions) -> Tensor:
    """One film, animation or folder of numbered images, read as a run's clips are, [1, C, T, H, W] in [-1, 1].

    Raises LimnerError.
    """
    if not Path(path).exists():
        raise LimnerError(f"There is no clip {path}.")
    if Path(path).suffix.lower() in SUFFIXES and not animated.moves(partial(_open, path)):
        raise LimnerError(f"{path} is a still picture and no clip: name it with --image, or name a clip.")
    options = dataclasses.replace(
        options.without_given(), fit=options.fit if options.fit != "tiles" else "crop"
    )
    # Pairs of neighbours, so that a clip of any length has all its frames.
    spacing = {"frames": 2, "step": 1, "stride": 1, "rate": spec.rate}
    with tempfile.TemporaryDirectory() as cache:
        data = open_like([path], spec, options, False, labels=False, captions=False, cache=cache, **spacing)
        if len({film_of(name) for name in data.names}) != 1:
            raise LimnerError(f"{path} holds several clips: name a single one.")
        pairs = data.batch(np.arange(len(data))).image  # [N, C, 2, H, W]
    clip = torch.cat([pairs[:, :, 0], pairs[-1:, :, 1]]).movedim(0, 1)[None]  # [1, C, T, H, W]
    return clip if spec.rate else clip[:, :, :: options.stride]
