"""Bicubic resizing as MATLAB's imresize, which super-resolution is measured by.

The kernel of Keys 1981 (a = -0.5), stretched where the picture shrinks; edges are mirrored and the edge pixel is
repeated. PyTorch's own with antialias renormalises at the edges instead; without it, a is -0.75 and it aliases.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

BAND = 512  # output pixels that are made by one matrix, so that its size is bounded


def bicubic(image: Tensor, scale: float) -> Tensor:
    """[B, C, H, W] -> [B, C, ceil(scale H), ceil(scale W)], not clamped."""
    height, width = (math.ceil(round(scale * side, 9)) for side in image.shape[-2:])
    return _along(_along(image, width, scale), height, scale, rows=True)


def bicubic_to(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] -> [B, C, *size], not clamped; each axis by its own scale."""
    across = _along(image, size[1], size[1] / image.shape[-1])  # [B, C, H, w]
    return _along(across, size[0], size[0] / image.shape[-2], rows=True)


def _along(image: Tensor, out: int, scale: float, rows: bool = False) -> Tensor:
    """One axis resized: the width, or with ``rows`` the height."""
    length, parts = image.shape[-2 if rows else -1], []
    with torch.autocast(image.device.type, enabled=False):
        for first, last, matrix in _bands(length, out, scale):
            matrix = matrix.to(image.device, image.dtype)  # [out, last - first]
            parts.append(matrix @ image[..., first:last, :] if rows else image[..., first:last] @ matrix.T)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2 if rows else -1)


@lru_cache(maxsize=64)
def _bands(length: int, out: int, scale: float) -> list[tuple[int, int, Tensor]]:
    """The weights of each output pixel, in bands: input pixels from, to, and a matrix [BAND, to - from] in float64."""
    with torch.device("cpu"), torch.inference_mode(False):
        shrink = min(scale, 1.0)
        taps = math.ceil(4 / shrink) + 2
        centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5  # [out]
        places = (centre - 2 / shrink).floor().long()[:, None] + torch.arange(taps)  # [out, taps]
        weights = keys_kernel((places - centre[:, None]) * shrink)
        weights = weights / weights.sum(1, keepdim=True)
        places = places.remainder(2 * length)
        places = torch.where(places < length, places, 2 * length - 1 - places)  # mirrored
        bands = []
        for at in range(0, out, BAND):
            index, weight = places[at : at + BAND], weights[at : at + BAND]
            first, last = int(index.min()), int(index.max()) + 1
            matrix = weight.new_zeros(len(index), last - first).scatter_add_(1, index - first, weight)
            bands.append((first, last, matrix))
        return bands


def keys_kernel(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys 1981, eq. 4: piecewise cubic, 1 at 0, 0 at the other whole numbers and beyond 2."""
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
