"""Frames in which one thing is wholly or partly behind another, checked against what they should show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from limner.data.sources.ink import ink
from limner.data.sources.moving.motion import STILL, Track, fits
from limner.data.sources.scenes import COLOURS

_SLACK, _WAYS = 0.012, 8  # ways whose error is so little above the least are as likely; so many are looked at
_DIFFERS = 0.4  # of the area of both things: what may be other than it should


@dataclass(frozen=True)
class Passing:
    """One of two tracks leads behind the other."""

    mover: int
    places: np.ndarray  # [T, 2] of its centre
    hidden: frozenset[int]  # frames, of those that were asked for, that show so: one at least


def passing(clip: np.ndarray, tracks: list[Track], colours: list[str], frames: list[int]) -> Passing | None:
    """Which of some frames of a clip (uint8 [T, H, W, 3]) show one of two things behind the other, which stands.

    ``frames`` are those in which not both are seen as they are. None where neither thing is behind the other in any.
    """
    if len(tracks) != 2 or colours[0] == colours[1] or len(tracks[0].frames) < 2:
        return None
    spread = [float(np.linalg.norm(np.ptp(track.places, 0))) for track in tracks]
    mover = int(spread[1] > spread[0])
    moving, front = tracks[mover], tracks[1 - mover]
    if spread[1 - mover] > STILL:
        return None
    names = list(COLOURS)
    numbers = names.index(colours[mover]), names.index(colours[1 - mover])
    shows = partial(_is_behind, clip, moving, front, numbers)
    found = [_way(places, moving, front, frames, shows, mover) for places in _ways(moving, len(clip))]
    return max((way for way in found if way and way.hidden), key=lambda way: len(way.hidden), default=None)


def _ways(track: Track, frames: int) -> list[np.ndarray]:
    """Places [frames, 2] on the ways that lead through a track: where it stops may be hidden."""
    every = fits(track.frames, track.places)
    least = min(way.error for way in every)
    likely = [way for way in every if way.error <= least + _SLACK**2]
    return [way.at(np.arange(frames)) for way in likely[:: -(-len(likely) // _WAYS)]]


def _way(
    places: np.ndarray, moving: Track, front: Track, frames: Sequence[int],
    shows: Callable[[np.ndarray, int], bool], mover: int,
) -> Passing | None:  # fmt: skip
    """What is hidden if the mover goes along places [T, 2]; None where these do not lead behind the other."""
    apart = np.linalg.norm(places - front.places.mean(0), axis=1)
    radii = moving.radii.mean(), front.radii.mean()
    if apart.min() > max(radii):
        return None
    hidden = [frame for frame in frames if apart[frame] < 1.3 * sum(radii) and shows(places[frame], frame)]
    return Passing(mover, places, frozenset(hidden))


def _is_behind(
    clip: np.ndarray, moving: Track, front: Track, colours: tuple[int, int], place: np.ndarray, frame: int
) -> bool:
    """Whether a frame shows both things as they look elsewhere, the first at a place and behind the other."""
    k = int(np.abs(moving.frames - frame).argmin())  # the nearest frame in which they are whole
    own, behind, _ = _areas(clip[moving.frames[k]], colours)
    shift = (place - moving.places[k]) * min(clip.shape[1:3])
    expected = _shifted(own, *shift) * (1 - behind)
    seen, seen_front, other = _areas(clip[frame], colours)
    differs = np.abs(seen - expected).sum() + np.abs(seen_front - behind).sum() + other.sum()
    return bool(differs <= _DIFFERS * (own.sum() + behind.sum()))


def _areas(picture: np.ndarray, colours: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[H, W] share of each pixel in either colour, and in all others, where these show clearly."""
    _, amount, best, _ = (x[0] for x in ink(picture[None].astype(np.float32)))
    one, two = (amount * (best == colour) for colour in colours)
    return one, two, np.where((best != colours[0]) & (best != colours[1]) & (amount > 0.5), amount, 0)


def _shifted(area: np.ndarray, x: float, y: float) -> np.ndarray:
    """An area [H, W] moved by pixels to the right and down, bilinearly; what comes in is empty."""
    left, top = int(np.floor(x)), int(np.floor(y))
    height, width = area.shape
    wide = np.zeros((3 * height, 3 * width), area.dtype)
    wide[height : 2 * height, width : 2 * width] = area

    def moved(down: int, right: int) -> np.ndarray:
        row, column = height - np.clip(down, -height, height), width - np.clip(right, -width, width)
        return wide[row : row + height, column : column + width]

    right, down = x - left, y - top
    above = moved(top, left) * (1 - right) + moved(top, left + 1) * right
    below = moved(top + 1, left) * (1 - right) + moved(top + 1, left + 1) * right
    return above * (1 - down) + below * down
