"""Reads clips back from their pixels by analysis alone, and says how well they follow their captions.

In every frame it sees which things there are, in which colours and sizes, and where; how they move it finds by fits
over the frames; and it says at which frame a clip breaks, where things are others, or not where they should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from limner.data.sources.moving import scenes as telling
from limner.data.sources.moving.digits import DIGITS
from limner.data.sources.moving.gallery import Gallery, digit_gallery, shape_gallery
from limner.data.sources.moving.hidden import passing
from limner.data.sources.moving.motion import Track, fit, motion_of
from limner.data.sources.moving.scenes import BEHIND, DIRECTIONS, SIZES, Scene
from limner.data.sources.moving.seen import Seen, see
from limner.data.sources.scenes import SHAPES, Thing
from limner.settings import LimnerError

_NEAR = 0.04  # of the shorter side: how far a thing may be from where it should be


@dataclass(frozen=True)
class Reading:
    """What a clip of T frames shows; of things, those of its first frame, the first by shape and colour first."""

    things: tuple[Thing, ...]  # none: the first frame is not one of clean things
    # of the frames up to ``broken_at``; None: of no kind, or of a single frame
    motions: tuple[str | None, ...]
    kept: int  # frames that show these things, from the first on
    # the first frame that shows other things, or not where their motion leads; None: none
    broken_at: int | None
    # [A, T, 2] centres (x, y), in units of the shorter side; NaN where a thing is not seen
    places: np.ndarray

    def right(self, told: Scene) -> dict[str, bool]:
        """What is as told; ``kept``: number, shapes and colours are, in every frame."""
        actors = sorted(told.canonical.actors, key=lambda actor: (actor.thing.shape, actor.thing.colour))
        wanted = tuple(actor.thing for actor in actors)
        right = {
            name: [getattr(t, name) for t in self.things] == [getattr(t, name) for t in wanted]
            for name in ("shape", "colour", "size")
        }
        alike = right["shape"] and right["colour"]
        still = self.places.shape[1] == 1
        motion = still or self.motions == tuple(actor.motion for actor in actors)
        kept = alike and self.kept == self.places.shape[1]
        exact = kept and motion and self.broken_at is None
        return right | {
            "number": len(self.things) == len(wanted), "motion": alike and motion, "kept": kept, "exact": exact,
            "exact_with_size": exact and right["size"],
        }  # fmt: skip


@dataclass(frozen=True)
class Oracle:
    """Of the clips of one built-in source. Pictures are read as clips of one frame, of which no motion is known."""

    shapes: tuple[str, ...]
    gallery: Callable[[], Gallery]

    def read(self, clips: np.ndarray) -> list[Reading]:
        """What each clip (uint8 [N, T, H, W, 3]) or picture (uint8 [N, H, W, 3]) shows."""
        clips = clips[:, None] if clips.ndim == 4 else clips
        n, frames = clips.shape[:2]
        seen = see(clips.reshape(n * frames, *clips.shape[2:]), self.gallery())
        return [read_frames(clip, seen[i * frames :][:frames]) for i, clip in enumerate(clips)]

    def parse(self, caption: str) -> Scene:
        return telling.parse(caption, self.shapes)

    def scenes(self, n: int, seed: int, held_out: bool = False) -> list[Scene]:
        return telling.scenes(n, seed, self.shapes, held_out)

    def unseen(self, n: int, seed: int, known: Sequence[str] = (), language: str = "en") -> list[str]:
        return telling.unseen(n, seed, self.shapes, known, language)

    def score(self, images: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
        """How well clips (uint8 [N, T, H, W, 3]) show the scenes of their captions, as shares of N.

        `exact`: number, shapes and colours in every frame, and how each moves; `exact_with_size`: the sizes at the
        start too; `kept`: number, shapes and colours in every frame; `whole`: no frame breaks, and how each moves is
        clear; `number`, `shape`, `colour`, `size`: those at the start; `motion`: of the frames before a break. Raises
        LimnerError for a caption that is not of a scene.
        """
        told = [self.parse(caption) for caption in captions]
        readings = self.read(images)
        rows = [reading.right(scene) for reading, scene in zip(readings, told, strict=True)]
        names = ("exact", "exact_with_size", "kept", "number", "shape", "colour", "size", "motion")
        shares = {name: sum(row[name] for row in rows) / max(len(rows), 1) for name in names}
        whole = sum(r.broken_at is None and (all(r.motions) or r.places.shape[1] == 1) for r in readings)
        return shares | {"whole": whole / max(len(rows), 1)}

    def compare(self, images: np.ndarray, others: np.ndarray) -> dict[str, float]:
        """How well clips (uint8 [N, T, H, W, 3]) show what others show, as shares of N.

        `exact`: the same things in the same places in every frame; `things`: shapes and colours at the start, `motion`:
        how each moves, `place`: the places. Raises LimnerError for one of ``others`` that shows no scene.
        """
        counts = dict.fromkeys(("exact", "things", "motion", "place"), 0)
        for i, (shown, wanted) in enumerate(zip(self.read(images), self.read(others), strict=True)):
            if not wanted.things or wanted.broken_at is not None:
                raise LimnerError(f"Clip {i} to compare with is not one of moving: choose clips of moving.")
            pairs = zip(shown.things, wanted.things, strict=False)
            things = len(shown.things) == len(wanted.things) and all(
                (a.shape, a.colour) == (b.shape, b.colour) for a, b in pairs
            )
            right = {"things": things, "motion": things and shown.motions == wanted.motions, "place": False}
            if things:
                off = np.linalg.norm(shown.places - wanted.places, axis=-1)
                right["place"] = bool((off <= _NEAR).all())
            counts["exact"] += things and right["place"] and shown.broken_at is None
            for name, is_right in right.items():
                counts[name] += is_right
        return {name: count / max(len(images), 1) for name, count in counts.items()}


def read_frames(clip: np.ndarray, seen: Sequence[list[Seen] | None]) -> Reading:
    """What a clip (uint8 [T, H, W, 3]) shows in whose T frames these things are seen."""
    frames, size = len(clip), clip.shape[1:3]
    first = sorted(seen[0] or [], key=lambda thing: thing.identity)
    names = [thing.identity for thing in first]
    if len(first) not in (1, 2) or len(set(names)) != len(names):
        return Reading((), (), 0, 0, np.zeros((0, frames, 2)))
    found = [sorted(things or [], key=lambda thing: thing.identity) for things in seen]
    whole = np.array([[thing.identity for thing in things] == names for things in found])
    whole &= ~_covered(found, whole)
    at = np.flatnonzero(whole)
    tracks = [
        Track(at, np.array([found[t][k].place for t in at]), np.array([found[t][k].radius for t in at]))
        for k in range(len(names))
    ]
    places = np.full((len(names), frames, 2), np.nan)
    for own, track in zip(places, tracks, strict=True):
        own[at] = track.places
    way = passing(clip, tracks, [colour for _, colour in names], np.flatnonzero(~whole).tolist())
    if way:
        for t in way.hidden:
            whole[t], places[:, t] = True, places[:, at].mean(1)
            places[way.mover, t] = way.places[t]
        tracks = [track.with_places(places[k], whole) for k, track in enumerate(tracks)]
    kept = frames if whole.all() else int(whole.argmin())
    motions, until = _motions(tracks, kept, size)
    if way and min(way.hidden) < until and motions[way.mover] in DIRECTIONS:
        motions[way.mover] = BEHIND
    things = tuple(
        Thing(*name, _size(float(fit(track.frames, track.radii[:, None]).at(at[:1])[0, 0])))
        for name, track in zip(names, tracks, strict=True)
    )
    return Reading(things, tuple(motions), kept, None if until == frames else until, places)


def _covered(found: Sequence[Sequence[Seen]], whole: np.ndarray) -> np.ndarray:
    """[T] in which of the frames that show two things one seems smaller where the other is near it.

    What is seen of a thing that is partly hidden may have the same shape.
    """
    covered = np.zeros(len(whole), bool)
    at = np.flatnonzero(whole).tolist()
    if len(found[at[0]]) == 2:
        radii = np.array([[thing.radius for thing in found[t]] for t in at])
        apart = [np.hypot(*np.subtract(found[t][0].place, found[t][1].place)) for t in at]
        usual = np.median(radii, 0)
        covered[at] = (np.abs(radii / usual - 1) > 0.08).any(1) & (np.array(apart) < 1.05 * usual.sum())
    covered[0] = False  # what the first frame shows is what the others are compared with
    return covered


def _size(radius: float) -> str:
    return min(SIZES, key=lambda name: abs(np.log(SIZES[name] / radius)))


def _motions(tracks: Sequence[Track], kept: int, size: tuple[int, int]) -> tuple[list[str | None], int]:
    """How each thing moves in as many of the first ``kept`` frames as show motions of known kinds, and how many."""
    for until in range(kept, 1, -1):
        motions = [motion_of(track.before(until), size) for track in tracks]
        if all(motions):
            return motions, until
    return [None] * len(tracks), 1


OF_SHAPES = Oracle(SHAPES, shape_gallery)
OF_DIGITS = Oracle(DIGITS, digit_gallery)
