"""Limner: train, sample, measure and serve image generators of every family on your own images.

import limner
limner.train("flow", "photos/", out="runs/mine", budget="20m")
limner.load("runs/mine").sample(16, seed=0)      # PIL images
limner.open_data("photos/", size=(32, 32))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limner.settings import __version__ as __version__

__all__ = ["load", "open_data", "train"]

if TYPE_CHECKING:
    from limner.api import load, open_data, train


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'limner' has no attribute {name!r}")
    from limner import api

    return getattr(api, name)
