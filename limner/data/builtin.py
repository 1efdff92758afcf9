"""Data that needs no file and no network: drawn shapes and handwritten digits."""

from __future__ import annotations

import hashlib
import threading
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from limner.data import shapes as scenes
from limner.data.sources import Item, Listing, Source
from limner.settings import LimnerError

SHAPES = 20_000  # images in the built-in `shapes`
_BLOCK = 1_000  # drawn at a time


def _version() -> str:
    """Of the drawing: another one must not find the old pictures in the cache."""
    return hashlib.sha256(Path(__file__).with_name("shapes.py").read_bytes()).hexdigest()[:16]


def shapes() -> Source:
    """20,000 drawn scenes with captions; the class is the first object's shape."""
    lock = threading.Lock()

    def listing() -> Listing:
        every = scenes.scenes(SHAPES, seed=0)

        @lru_cache(maxsize=2)
        def block(number: int, height: int, width: int) -> np.ndarray:
            return scenes.draw(every[number * _BLOCK : (number + 1) * _BLOCK], height, width, seed=number)

        def picture(i: int, height: int, width: int) -> Image.Image:
            with lock:
                return Image.fromarray(block(i // _BLOCK, height, width)[i % _BLOCK])

        items = enumerate(every)
        return Listing(
            [Item(f"shapes/{i:05d}", partial(picture, i), s.first.shape, s.caption) for i, s in items]
        )

    return Source("shapes", ["shapes", _version(), SHAPES], listing, drawn=True, channels=3, oracle=scenes)


def digits() -> Source:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries; classes 0 to 9, grey."""

    def listing() -> Listing:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise LimnerError(
                "The digits are a part of scikit-learn: pip install 'limner[metrics]'."
            ) from None
        loaded = load_digits()
        pixels = np.rint(loaded.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], 0 to 16 in the original

        def picture(i: int, height: int, width: int) -> Image.Image:
            return Image.fromarray(pixels[i])

        labels = enumerate(map(str, loaded.target))
        return Listing([Item(f"digits/{i:04d}", partial(picture, i), label) for i, label in labels])

    return Source("digits", ["digits", 1], listing, drawn=True, channels=1)
