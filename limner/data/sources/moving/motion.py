"""How a thing moves, by fits over the frames in which it is seen.

Lengths are in units of the picture's shorter side. What moves, grows or shrinks does so evenly, and then keeps still;
what bounces goes evenly along what it goes of its way from edge to edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limner.data.sources.drawing import REACH
from limner.data.sources.moving.paths import MARGIN
from limner.data.sources.moving.scenes import BOUNCES, DIRECTIONS, GROWS, SHRINKS, STANDS

_OFF = 0.03  # root of the mean square distance from a fit, at most
STILL = 0.05  # what moves less than that, stands
_CHANGES = np.log(1.15)  # of the radius: what changes less, keeps its size
_EXPLAINED = 0.8  # of the variance along the way, at least
_EXACT = 0.012  # likewise, of a fit than which no other need be better
_UNEVEN = 0.04  # as _OFF, of a way unfolded at the edges


@dataclass(frozen=True)
class Track:
    """A thing in the K frames in which it is wholly seen."""

    frames: np.ndarray  # [K] their numbers, in order
    places: np.ndarray  # [K, 2] centres (x, y)
    radii: np.ndarray  # [K]

    def before(self, frame: int) -> Track:
        kept = self.frames < frame
        return Track(self.frames[kept], self.places[kept], self.radii[kept])

    def with_places(self, places: np.ndarray, known: np.ndarray) -> Track:
        """With places [T, 2] of all frames where they are ``known`` [T], of the size that it usually has."""
        frames = np.flatnonzero(known)
        return Track(frames, places[frames], np.full(len(frames), np.median(self.radii)))


@dataclass(frozen=True)
class Fit:
    """value(t) = start + rate min(t, until), of frame numbers t."""

    start: np.ndarray  # [D]
    rate: np.ndarray  # [D]
    until: float
    error: float  # mean square distance
    explained: float  # share of the variance

    def at(self, frames: np.ndarray) -> np.ndarray:
        """[K, D]"""
        return self.start + self.rate * np.minimum(frames, self.until)[:, None]


def fit(frames: np.ndarray, values: np.ndarray) -> Fit:
    """The best of all fits to values [K, D] at frames [K]."""
    return min(fits(frames, values), key=lambda fit: fit.error)


def fits(frames: np.ndarray, values: np.ndarray) -> list[Fit]:
    """The best fits to values [K, D] at frames [K] for each frame, and half, at which it may come to a stop."""
    last = float(frames[-1])
    ends = np.append(np.arange(frames[0] + 1, last, 0.5), last)
    ways = np.minimum(frames, ends[:, None])  # [U, K]
    means = ways.mean(1)
    way = ways - means[:, None]
    mean = values.mean(0)
    centred = values - mean
    rates = way @ centred / np.maximum((way**2).sum(1), 1e-9)[:, None]  # [U, D]
    errors = ((centred - rates[:, None] * way[..., None]) ** 2).sum(-1).mean(1)
    variance = max(float((centred**2).sum(-1).mean()), 1e-12)
    ends[-1] = np.inf  # it is not seen to stop
    return [
        Fit(mean - rate * middle, rate, float(end), float(error), 1 - float(error) / variance)
        for rate, middle, end, error in zip(rates, means, ends, errors, strict=True)
    ]


def motion_of(track: Track, size: tuple[int, int]) -> str | None:
    """Of MOTIONS, in a picture of a size (height, width); None for what is none of them, or for a single frame."""
    if len(track.frames) < 2:
        return None
    place, growth = fit(track.frames, track.places), fit(track.frames, np.log(track.radii)[:, None])
    span = track.frames[-1] - track.frames[0]
    change = float(growth.rate[0]) * min(growth.until - track.frames[0], span)
    step = place.rate * min(place.until - track.frames[0], span)
    spread = np.linalg.norm(track.places - track.places.mean(0), axis=1).max()
    if abs(change) >= _CHANGES:
        even = growth.explained >= _EXPLAINED and spread < STILL
        return (GROWS if change > 0 else SHRINKS) if even else None
    if np.ptp(np.log(track.radii)) > 2 * _CHANGES:
        return None
    if spread < STILL:
        return STANDS
    moves = np.linalg.norm(step) >= STILL and place.error <= _OFF**2 and place.explained >= _EXPLAINED
    bouncing = _bouncing(track, size)
    if (
        moves and bouncing > (place.error - _EXACT**2) / 2
    ):  # what turns at the end of a clip almost seems to stop
        return _direction(step)
    return BOUNCES if bouncing < np.inf else None


def _direction(step: np.ndarray) -> str:
    """The name of the nearest of the eight directions."""
    return max(
        DIRECTIONS, key=lambda name: float(step @ np.array(DIRECTIONS[name])) / np.hypot(*DIRECTIONS[name])
    )


def _bouncing(track: Track, size: tuple[int, int]) -> float:
    """The mean square distance from an even way between the edges along both axes; infinite for another way."""
    extent, reach = np.array([size[1], size[0]]) / min(size), REACH * track.radii.mean() + MARGIN
    error, turned = 0.0, 0
    for axis in (0, 1):
        values = track.places[:, axis]
        if np.ptp(values) < STILL:
            error += float(values.var())
            continue
        ways = [_unfolded(values, reach, extent[axis] - reach, ahead) for ahead in (True, False)]
        fits = [fit(track.frames, way[:, None]) for way, _ in ways]
        best = int(fits[1].error < fits[0].error)
        # What bounces does not stop.
        if fits[best].error > _UNEVEN**2 or fits[best].until < track.frames[-1] - 1:
            return np.inf
        error, turned = error + fits[best].error, turned + ways[best][1]
    return error if turned else np.inf


def _unfolded(values: np.ndarray, low: float, high: float, ahead: bool) -> tuple[np.ndarray, int]:
    """The way [K] that something went between two edges, at first ``ahead`` or back, and how often it turned.

    In each step it goes straight on, or turns at the edge before it: whichever is nearer to the usual length of a step.
    """
    steps = np.diff(values)
    usual, way, turns = np.median(np.abs(steps)), [0.0], 0
    for value, step in zip(values, steps, strict=False):
        straight = step if ahead else -step
        edge = high if ahead else low
        turned = abs(edge - value) + abs(edge - value - step)
        turns_here = abs(turned - usual) < abs(straight - usual)
        way.append(way[-1] + (turned if turns_here else straight))
        ahead, turns = ahead != turns_here, turns + turns_here
    return np.array(way), turns
