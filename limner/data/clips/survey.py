"""A clip at its own size and times, frame by frame, for whoever writes it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from limner.data.clips import film
from limner.data.clips.reels import NO_DELAY
from limner.data.images.animated import FORMATS, moves
from limner.data.images.decode import reason
from limner.data.images.formats import FILMS
from limner.data.images.limits import Unusable
from limner.data.images.opening import open_image
from limner.settings import LimnerError

EVEN = 0.0021  # seconds: times that differ less from those of an even rate are rounded ones


@dataclass(frozen=True)
class Survey:
    """What a clip is, found by reading it once."""

    times: list[float]  # seconds at which each frame begins
    rate: float  # frames a second, in the mean
    even: bool  # whether all frames are shown equally long, but for rounding
    alpha: bool
    notes: tuple[str, ...]  # what is left out or changed


def is_clip(path: Path) -> bool:
    """Whether a file is a film by its name, or an animation by its content."""
    suffix = path.suffix.lower()
    animated = suffix in {f".{name.lower()}" for name in (*FORMATS, "apng")}
    return path.is_file() and (suffix in FILMS or (animated and moves(partial(_opened, path))))


def _opened(path: Path, *_: int) -> IO[bytes]:
    return open(path, "rb")


def survey(path: Path) -> Survey:
    """Read a clip once. Raises LimnerError for one that cannot be used."""
    notes: list[str] = []
    with _reading(path) as source:
        if path.suffix.lower() not in FILMS:
            times, alpha = [], False
            for start, pixels in _animation(source):
                times.append(start)
                alpha |= bool((pixels[..., 3] < 255).any())
            length = times.pop()
            rate = len(times) / length
        else:
            with film.opened(source, "refuse") as found:
                times = [time for time, _ in found.frames()]
                if not times:
                    raise Unusable("no frame of it can be decoded: its start is damaged or cut off")
                lasts = times[-1] - times[0]
                rate = found.rate or ((len(times) - 1) / lasts if lasts > 0 else 8.0)
                alpha = found.alpha
                if found.sound:
                    notes.append("its sound is left out")
                if lost := found.lost(len(times)):
                    notes.append(lost)
    even = all(abs(time - times[0] - i / rate) <= EVEN for i, time in enumerate(times))
    if not even and len(times) > 1:
        rate = (len(times) - 1) / (times[-1] - times[0])
    return Survey(times, rate, even, alpha, tuple(notes))


def frames_of(path: Path, alpha: bool) -> Iterator[np.ndarray]:
    """uint8 [H, W, 1 or 3, or 4 with ``alpha``], premultiplied, upright, with square pixels. Raises LimnerError."""
    with _reading(path) as source:
        if path.suffix.lower() in FILMS:
            with film.opened(source, "refuse") as found:
                for _, frame in found.frames():
                    pixels = film.rgb_of(found, frame)
                    yield pixels[..., None] if pixels.ndim == 2 else pixels
            return
        last: np.ndarray | None = None
        for _, pixels in _animation(source):
            if last is not None:
                yield last if alpha else np.ascontiguousarray(last[..., :3])
            last = pixels


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        with open(path, "rb") as source:
            yield source
    except LimnerError:
        raise
    except Exception as error:  # on damaged files libraries raise nearly anything
        raise LimnerError(f"{path} cannot be used: {reason(error)}.") from None


def _animation(source: IO[bytes]) -> Iterator[tuple[float, np.ndarray]]:
    """Time and RGBA frame, premultiplied; at the end the time at which the last one ends, with that frame again."""
    opened, time = open_image(source), 0.0
    image: Any = opened.image
    with image:
        for i in range(int(getattr(image, "default_image", False)), image.n_frames):
            image.seek(i)
            pixels = np.asarray(image.convert("RGBA").convert("RGBa"))
            yield time, pixels
            time += (float(image.info.get("duration") or 0) / 1000) or NO_DELAY
    yield time, pixels
