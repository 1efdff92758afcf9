"""The built-in sources `moving` and `moving-digits`."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from limner.data.items import Item, Listing, Source
from limner.data.sources.moving.digits import digit_cover
from limner.data.sources.moving.draw import Clip, Cover, shape_cover
from limner.data.sources.moving.oracle import OF_DIGITS, OF_SHAPES, Oracle
from limner.data.sources.moving.scenes import captions

CLIPS = 20_000  # in either source
# Files that decide how clips look: another drawing must not find the old ones in the cache.
_FILES = (
    *("draw.py", "digits.py", "paths.py", "scenes.py", "scenes_zh.py"),
    *(f"../{name}.py" for name in ("drawing", "scenes", "scenes_zh")),
)


def moving(language: str = "en") -> Source:
    """20,000 drawn clips of one or two shapes that move, with captions; the class is how the first moves.

    ``language``: see ``DataOptions``. Of a data set of still images, each is the first frame of its clip.
    """
    return _source("moving", shape_cover, OF_SHAPES, language)


def moving_digits(language: str = "en") -> Source:
    """The same with handwritten digits in place of shapes."""
    return _source("moving-digits", digit_cover, OF_DIGITS, language)


def _source(name: str, cover: Cover, oracle: Oracle, language: str) -> Source:
    def listing() -> Listing:
        every = oracle.scenes(CLIPS, 0)
        texts = captions(every, language)
        clips = [Clip(scene, i, cover) for i, scene in enumerate(every)]
        return Listing(
            [
                Item(
                    f"{name}/{i:05d}",
                    partial(_still, clip),
                    clip.scene.first.motion,
                    text,
                    clip=partial(_clip, clip),
                )
                for i, (clip, text) in enumerate(zip(clips, texts, strict=True))
            ]
        )

    files = [(Path(__file__).parent / file).read_bytes() for file in _FILES]
    version = hashlib.sha256(b"".join(files)).hexdigest()[:16]
    return Source(name, [name, version, CLIPS, language], listing, drawn=True, channels=3, oracle=oracle)


def _still(clip: Clip, height: int, width: int) -> Image.Image:
    return Image.fromarray(clip.draw(height, width, 1)[0])


def _clip(clip: Clip, height: int, width: int, frames: int, rate: float | None) -> np.ndarray:
    return clip.draw(height, width, frames, rate)
