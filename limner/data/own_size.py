"""A picture at its own size, whatever that of a run's images is."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from torch import Tensor

from limner.core import ImageSpec
from limner.data.open import image_sizes, open_picture
from limner.settings import DataOptions


def open_at_own_size(path: str | os.PathLike[str], spec: ImageSpec, options: DataOptions) -> Tensor:
    """One image file in the channels of ``spec``, as a run's own images are read, [1, C, H, W] in [-1, 1].

    Raises LimnerError.
    """
    sizes = image_sizes(str(path), 1) if Path(path).is_file() else []  # else the next call says what is wrong
    height, width = sizes[0] if sizes else (spec.height, spec.width)
    return open_picture(path, dataclasses.replace(spec, height=height, width=width), options)
