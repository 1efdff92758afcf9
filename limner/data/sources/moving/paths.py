"""How the things of a clip move: their places and radii at any time, in units of the picture's shorter side."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from limner.data.sources.drawing import REACH
from limner.data.sources.moving.scenes import BEHIND, BOUNCES, DIRECTIONS, GROWS, SHRINKS, SIZES, Actor, Scene
from limner.settings import LimnerError

RATE = 8.0  # frames a second, where none is asked for
CHANGE = 1.5  # how many times its radius a thing grows to, or shrinks from
MARGIN = 0.012  # least distance from the edges
_APART = 0.04  # least distance between two things that do not pass
_LEAST_WAY = 0.16  # what moves goes at least so far, and on to the edge, where it stops
_TRIES, _ROUNDS = 64, 160


def times(frames: int, rate: float | None) -> np.ndarray:
    """[T] seconds of the frames.

    A frame takes at most a quarter of a second, and else a clip at least one, whatever the rate: its motion
    could not be told otherwise.
    """
    step = min(max(1 / (rate or RATE), 1 / max(frames - 1, 1)), 0.25)
    return np.arange(frames) * step


@dataclass(frozen=True)
class Path:
    """How each of K things moves."""

    start: np.ndarray  # [K, 2] centre (x, y)
    velocity: np.ndarray  # [K, 2] a second
    until: np.ndarray  # [K] seconds after which it stands, and keeps its size
    radius: np.ndarray  # [K] at the start
    growth: np.ndarray  # [K] of the logarithm of the radius, a second
    low: np.ndarray  # [2] of the centre, for what bounces
    high: np.ndarray  # [2]
    bounces: bool = False

    def __getitem__(self, rows: np.ndarray | slice) -> Path:
        return replace(
            self, start=self.start[rows], velocity=self.velocity[rows], until=self.until[rows],
            radius=self.radius[rows], growth=self.growth[rows],
        )  # fmt: skip

    def at(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centres [K, T, 2] and radii [K, T] at times [T]."""
        moved = np.minimum(seconds, self.until[:, None])  # [K, T]
        place = self.start[:, None] + self.velocity[:, None] * moved[..., None]
        if self.bounces:
            span = self.high - self.low
            place = self.low + span - np.abs((place - self.low) % (2 * span) - span)
        return place, self.radius[:, None] * np.exp(self.growth[:, None] * moved)


def paths(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> list[Path]:
    """A random path of each thing of a scene in a picture of a size (height, width), for all time.

    Two things keep apart unless one passes behind the other. Raises LimnerError where there is no room.
    """
    side = min(size)
    extent = np.array([size[1], size[0]]) / side
    for _ in range(_ROUNDS):
        if scene.first.motion == BEHIND:
            both = _passing(scene, extent, rng)
        else:
            alone = scene.second is None
            both = [_path(actor, extent, rng, alone) for actor in scene.actors]
        fits = np.flatnonzero(_keep_apart(both) if scene.first.motion != BEHIND else np.ones(_TRIES, bool))
        if len(fits):
            return [path[fits[:1]] for path in both]
    raise LimnerError(f"There is no room for {scene.caption!r} in {size[0]}x{size[1]} pixels.")


def _path(actor: Actor, extent: np.ndarray, rng: np.random.Generator, alone: bool) -> Path:
    """Candidates for the path of one thing."""
    radius, k = SIZES[actor.thing.size], _TRIES
    change = {GROWS: np.log(CHANGE), SHRINKS: -np.log(CHANGE)}.get(actor.motion, 0.0)
    low, high = _box(radius * np.exp(max(change, 0)), extent)
    start = low + rng.random((k, 2)) * (high - low)
    velocity, until, growth = np.zeros((k, 2)), np.zeros(k), np.zeros(k)
    if change:
        until = rng.uniform(0.9, 1.6, k)
        growth = change / until
    elif actor.motion == BOUNCES:
        velocity, until = rng.choice([-1, 1], (k, 2)) * rng.uniform(0.45, 0.7, (k, 2)), np.full(k, np.inf)
        first = rng.integers(2, size=k)  # the axis along which it first meets an edge
        rows = np.arange(k)
        way = np.abs(velocity[rows, first]) * rng.uniform(0.25, 0.6, k)
        ahead = velocity[rows, first] > 0
        start[rows, first] = np.where(ahead, high[first] - way, low[first] + way)
        if not alone or rng.random() < 0.5:  # along one axis, so that another thing has room
            velocity[rows, 1 - first] = 0
    elif actor.motion in DIRECTIONS:
        step = np.array(DIRECTIONS[actor.motion])
        velocity = step * rng.uniform(0.2, 0.4, (k, 1)) / np.hypot(*step)
        way = _LEAST_WAY + rng.random((k, 2)) * (high - low - _LEAST_WAY)
        start = np.where(step > 0, high - way, np.where(step < 0, low + way, start))
        until = np.where(step != 0, way / np.maximum(np.abs(velocity), 1e-9), np.inf).min(1)
    return Path(start, velocity, until, np.full(k, radius), growth, low, high, actor.motion == BOUNCES)


def _passing(scene: Scene, extent: np.ndarray, rng: np.random.Generator) -> list[Path]:
    """Candidates for a thing that passes behind another, along one axis from side to side."""
    radius, other = (SIZES[actor.thing.size] for actor in scene.actors)
    k, zero = _TRIES, np.zeros(_TRIES)
    axis, sign = np.full(k, rng.integers(2)), np.full(k, rng.choice([-1, 1]))
    rows = np.arange(k)
    low, high = _box(max(radius, other), extent)
    place = low + rng.random((k, 2)) * (high - low)  # of the other
    apart = 2 * REACH * max(radius, other)
    (low, high), middle = _box(radius, extent), extent / 2
    room = np.maximum((high - low)[axis] / 2 - apart, 0.01)
    place[rows, axis] = middle[axis] + rng.uniform(-1, 1, k) * room
    start = place + rng.uniform(-0.02, 0.02, (k, 2))
    ends = np.clip(place[rows, axis] - sign * apart, low[axis], high[axis])
    start[rows, axis] = ends
    velocity = np.zeros((k, 2))
    speed = rng.uniform(0.42, 0.6, k)
    velocity[rows, axis] = sign * speed
    until = np.where(sign > 0, high[axis] - ends, ends - low[axis]) / speed
    start = np.clip(start, low, high)
    return [
        Path(start, velocity, until, np.full(k, radius), zero, low, high),
        Path(place, np.zeros((k, 2)), zero, np.full(k, other), zero, low, high),
    ]


def _box(radius: float, extent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest (x, y) of a centre."""
    least = np.full(2, REACH * radius + MARGIN)
    return least, extent - least


def _keep_apart(both: list[Path], seconds: float = 8.0) -> np.ndarray:
    """[K] whether two things never come near each other."""
    if len(both) == 1:
        return np.ones(_TRIES, bool)
    # All but what bounces stands by then; a bounce comes near within its first rounds, or never.
    moments = np.arange(0, seconds, 1 / 16)
    (one, r), (two, s) = (path.at(moments) for path in both)
    return (np.linalg.norm(one - two, axis=-1) > REACH * (r + s) + _APART).all(1)
