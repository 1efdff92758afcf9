"""A picture with its channels, profile and alpha through a network that has channels of its own."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from limner.data.images.decode import as_channels
from limner.data.images.whole import WholePicture, resized
from limner.inference.tiles import Translator
from limner.progress import Watch, ignore, part

Colour = tuple[int, int, int]


def translate_picture(
    translator: Translator, picture: WholePicture, background: Colour, watch: Watch = ignore
) -> tuple[WholePicture, list[str]]:
    """The result, with what was changed on the way.

    Alpha takes the network's own way as grey where the model restores, else it is resized. Raises LimnerError.
    """
    pixels, notes, channels = picture.pixels, [], translator.channels
    colours, alpha = (pixels[..., :-1], pixels[..., -1:]) if picture.alpha else (pixels, None)
    restores, apart = translator.model.restores, alpha is not None and channels < 4
    if channels == 1 and not picture.grey:
        notes.append("its colours become grey, as the run's own pictures are")
    given = as_channels(colours, channels, background, pixels.dtype)
    if alpha is not None and channels == 4:
        given[..., 3:] = alpha
    share = 0.5 if apart and restores else 1.0
    result = translator(given, part(watch, 0.0, share))  # [scale H, scale W, C']
    if alpha is not None and apart:
        opacity = _alpha(translator, alpha, part(watch, share, 1 - share))
        result = np.concatenate([np.minimum(result[..., :3], opacity), opacity], -1)
    elif restores and alpha is None and result.shape[2] == 4:
        result = as_channels(result, 3, background, pixels.dtype)
    if picture.grey and restores:
        result = _greyed(result, background)
    return dataclasses.replace(picture, pixels=result), notes


def _alpha(translator: Translator, alpha: np.ndarray, watch: Watch) -> np.ndarray:
    """[H, W, 1] -> [scale H, scale W, 1]"""
    if not translator.model.restores:
        size = alpha.shape[1] * translator.network.scale, alpha.shape[0] * translator.network.scale
        return resized(alpha, size, Image.Resampling.BICUBIC)
    if (alpha == np.iinfo(alpha.dtype).max).all():
        return np.full((*(translator.network.scale * side for side in alpha.shape[:2]), 1), alpha.flat[0])
    grey = translator(as_channels(alpha, translator.channels, (0, 0, 0), alpha.dtype), watch, fixed=False)
    return as_channels(grey, 1, (0, 0, 0), alpha.dtype)


def _greyed(pixels: np.ndarray, background: Colour) -> np.ndarray:
    """Grey without or with alpha, as [H, W, 1 or 2]."""
    if pixels.shape[2] < 3:
        return pixels
    grey = as_channels(np.ascontiguousarray(pixels[..., :3]), 1, background, pixels.dtype)
    return grey if pixels.shape[2] == 3 else np.concatenate([grey, pixels[..., 3:]], -1)
