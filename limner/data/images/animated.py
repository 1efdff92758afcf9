"""Which image files are animations."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

from limner.data.images.opening import open_image

FORMATS = ("GIF", "WEBP", "PNG", "AVIF")  # whose further frames follow the first in time


def moves(opener: Callable[..., IO[bytes]]) -> bool:
    """Whether an image file is an animation of several frames."""
    try:
        with opener(0, 0) as source, open_image(source).image as image:
            return image.format in FORMATS and getattr(image, "n_frames", 1) > 1
    except Exception:  # damaged: whoever decodes it says how
        return False
