"""Which things each frame of a clip shows, in which colours and sizes, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from limner.data.sources.ink import PALETTE, connected, ink
from limner.data.sources.moving.gallery import Gallery
from limner.data.sources.scenes import COLOURS

_OFF = 70  # levels by which a pixel may differ from its colour, as far as it is covered
_BATCH = 256  # frames at a time


@dataclass(frozen=True)
class Seen:
    """A clean thing of one frame; lengths are in units of the shorter side."""

    shape: str
    colour: str
    radius: float
    place: tuple[float, float]  # of its centre (x, y)

    @property
    def identity(self) -> tuple[str, str]:
        return self.shape, self.colour


def see(frames: np.ndarray, gallery: Gallery) -> list[list[Seen] | None]:
    """The things of each frame (uint8 [N, H, W, 3]); None for one that shows anything but clean things."""
    return [
        things
        for start in range(0, len(frames), _BATCH)
        for things in _see(frames[start : start + _BATCH].astype(np.float32), gallery)
    ]


def _see(pixels: np.ndarray, gallery: Gallery) -> list[list[Seen] | None]:
    paper, amount, colours, off = ink(pixels)
    side = min(pixels.shape[1:3])
    least = max(3, 0.003 * side**2)  # specks smaller than that do not count
    drawn = amount > 0.5
    masks = drawn[:, None] & (
        colours[:, None] == np.arange(len(PALETTE))[:, None, None]
    )  # [N, colours, H, W]
    where = np.argwhere(masks.sum((2, 3)) >= least)  # [P, 2] frame, colour
    found: list[list[Seen] | None] = [[] for _ in pixels]
    for i in np.flatnonzero((np.linalg.norm(PALETTE - paper[:, 0], axis=-1) < 60).any(-1)).tolist():
        found[i] = None  # a background on which a colour cannot be seen
    if not len(where):
        return found
    of, parts = _parts(masks[where[:, 0], where[:, 1]], least)
    if not len(of):
        return found
    frame, colour = where[of].T
    near = F.max_pool2d(torch.from_numpy(parts)[:, None].float(), 3, 1, 1)[:, 0].numpy() > 0
    own = (colours[frame] == colour[:, None, None]) | ~drawn[frame]
    soft = amount[frame] * (near & own)
    clean = _clean(parts, amount[frame], off[frame])
    shapes, alike, radii, places = gallery.name(soft)
    for i, n in enumerate(frame.tolist()):
        things = found[n]
        if not clean[i] or alike[i] < gallery.least:
            found[n] = None
        elif things is not None:
            x, y = places[i]
            things.append(
                Seen(
                    gallery.shapes[shapes[i]], list(COLOURS)[colour[i]], float(radii[i]), (float(x), float(y))
                )
            )
    return found


def _parts(masks: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """The connected parts [M, H, W] of masks [P, H, W], but specks, and the mask that each is of [M]."""
    labels = connected(masks)
    of, parts = [], []
    for i, label in enumerate(labels):
        names, areas = np.unique(label[label > 0], return_counts=True)
        for name in names[areas >= least]:
            of.append(i)
            parts.append(label == name)
    return np.array(of, int), np.array(parts, bool).reshape(-1, *masks.shape[1:])


def _clean(parts: np.ndarray, amount: np.ndarray, off: np.ndarray) -> np.ndarray:
    """[M] whether each part is of its colour throughout, and somewhere covered by it."""
    core = parts & (amount > 0.6)
    right = (core & (off < _OFF)).sum((1, 2)) / np.maximum(core.sum((1, 2)), 1)
    return (right >= 0.85) & ((amount * parts).max((1, 2)) > 0.85)
