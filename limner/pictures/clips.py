"""Clips as files: videos, animations, folders of frames. The suffix says which."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from limner import files
from limner.pictures.animations import Gif, WebP
from limner.pictures.grid import grid, png, save_grid, to_pixels
from limner.pictures.videos import TICK, Video, check_pyav
from limner.settings import LimnerError, join_words

ASSUMED_RATE = 8.0  # frames a second, where nothing says it
SUFFIXES = {".mp4": "mp4", ".webm": "webm", ".mkv": "matroska", ".gif": "gif", ".webp": "webp"}
LOSSLESS = ".mkv", ".webp"
LEAST = 256  # pixels of the shorter side of what is looked at: smaller clips are enlarged
LARGEST = 4096  # pixels of the longer side that this enlarges to, at most
GIF_RATE = 50  # frames a second: players show shorter delays than 2/100 s as 10/100 s
RATES = 0.01, 1000  # frames a second that can be written


def check_clip(path: Path, rate: float | Fraction = ASSUMED_RATE, lossless: bool = False) -> None:
    """Raises LimnerError for a clip that cannot be written there, before long work; no suffix: a folder of PNGs."""
    suffix = path.suffix.lower()
    if suffix and suffix not in SUFFIXES:
        known = join_words((*sorted(SUFFIXES), "a folder for PNGs"))
        raise LimnerError(f"No clip is written as {suffix}: choose {known}.")
    if not RATES[0] <= rate <= RATES[1]:
        raise LimnerError(
            f"{float(rate):g} frames a second cannot be written: choose {RATES[0]} to {RATES[1]}."
        )
    if lossless and suffix and suffix not in LOSSLESS:
        raise LimnerError(f"{suffix} loses colours: write a {join_words(LOSSLESS)}, or leave out --lossless.")
    if suffix == ".mkv" and not lossless:
        raise LimnerError("A .mkv is written without loss: add --lossless, or write a .mp4.")
    if suffix == ".gif" and rate > GIF_RATE:
        raise LimnerError(
            f"A GIF shows at most {GIF_RATE} frames a second, not {float(rate):g}: write a .webp or .mp4."
        )
    if suffix in (".mp4", ".webm", ".mkv"):
        check_pyav()


def save_clip(
    path: Path, frames: Tensor | Sequence[Tensor], rate: float | Fraction = ASSUMED_RATE, lossless: bool = False,
    bits: int = 8,
) -> list[str]:  # fmt: skip
    """Write frames [T, C, H, W] in [-1, 1] at so many a second, whole or not at all; returns what was changed.

    Small clips are enlarged by a whole factor, so that halving the colours loses little; not in a folder of PNGs, of
    ``bits`` a channel, nor without loss. Raises LimnerError.
    """
    if not path.suffix:
        check_clip(path, rate, lossless)
        save_frames(path, frames, bits)
        return []
    with clip_file(path, rate, lossless) as clip:
        for frame in frames:
            clip.add(to_pixels(frame))
    return clip.notes


def save_frames(folder: Path, frames: Tensor | Sequence[Tensor], bits: int = 8) -> None:
    """Write frames [T, C, H, W] in [-1, 1] as 000000.png, 000001.png, ... of a new folder, or of an empty one."""
    files.refuse_other_files(folder, "--to")
    with files.atomic_folder(folder) as unfinished:
        for number, frame in enumerate(frames):
            (unfinished / frame_name(number)).write_bytes(png(frame, bits))


def frame_name(number: int) -> str:
    return f"{number:06d}.png"


def save_clips(
    path: Path, clips: Tensor, rate: float | Fraction = ASSUMED_RATE, lossless: bool = False,
    captions: Sequence[str] | None = None,
) -> list[str]:  # fmt: skip
    """Write clips [N, C, T, H, W] in [-1, 1] in one file: .png a sheet, frames across and clips down; else a clip.

    Several play side by side, each with its caption. Returns what was changed. Raises LimnerError.
    """
    if path.suffix.lower() == ".png":
        save_grid(path, clips, captions)
        return []
    if len(clips) == 1:
        return save_clip(path, clips[0].movedim(1, 0), rate, lossless)
    with clip_file(path, rate, lossless) as clip:
        for frames in clips.unbind(2):  # [N, C, H, W]
            clip.add(np.asarray(grid(frames, captions)))
    return clip.notes


def clip_bytes(frames: Tensor, suffix: str, rate: float | Fraction, lossless: bool = False) -> bytes:
    """Frames [T, C, H, W] in [-1, 1] as the bytes of a file. Raises LimnerError."""
    file = io.BytesIO()
    with ClipFile(file, SUFFIXES[suffix], rate, lossless) as clip:
        for frame in frames:
            clip.add(to_pixels(frame))
    return file.getvalue()


@contextmanager
def clip_file(
    path: Path, rate: float | Fraction = ASSUMED_RATE, lossless: bool = False, own_times: bool = False
) -> Iterator[ClipFile]:
    """A clip to add frames to, which is at ``path`` at the end, whole. ``own_times``: each frame says its time.

    Raises LimnerError.
    """
    check_clip(path, rate, lossless)
    with (
        files.atomic(path) as unfinished,
        ClipFile(unfinished, SUFFIXES[path.suffix.lower()], rate, lossless, own_times) as clip,
    ):
        yield clip


class ClipFile:
    """A clip under way. ``notes`` says what of its frames the format could not hold."""

    def __init__(
        self, to: Path | IO[bytes], kind: str, rate: float | Fraction, lossless: bool, own_times: bool = False
    ):
        self.to, self.kind, self.lossless, self.own_times = to, kind, lossless, own_times
        self.rate = Fraction(rate).limit_denominator(1001)
        self.notes, self.frames = list[str](), 0
        self._encoder: Any = None
        self._fit: Fit | None = None
        self._last: tuple[np.ndarray, int] | None = (
            None  # a frame whose end is not known yet, and its start in units
        )

    def __enter__(self) -> ClipFile:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._close()
        finally:
            with suppress(OSError):
                if self._encoder:
                    self._encoder.abandon()

    def add(self, pixels: np.ndarray, time: Fraction | None = None) -> None:
        """A frame uint8 [H, W, 1, 3 or 4] with straight alpha; its ``time`` in seconds, where each has its own."""
        if self._fit is None:
            self._fit = fit = Fit.of(pixels.shape, self.kind, self.lossless)
            self.notes += fit.notes
            self._encoder = self._open(fit)
        start = round((self.frames / self.rate if time is None else time) / self._encoder.unit)
        if self._last is not None:
            start = max(start, self._last[1] + 1)
            self._write_last(start)
        self._last = self._fit(pixels), start
        self.frames += 1

    def _close(self) -> None:
        """Write what is left. Raises LimnerError for a clip without frames."""
        if self._last is None:
            raise LimnerError("A clip needs frames, and there are none.")
        stop = round(self.frames / self.rate / self._encoder.unit)
        if self.own_times or stop <= self._last[1]:
            stop = self._last[1] + max(1, round(1 / (self.rate * self._encoder.unit)))
        self._write_last(stop)
        self._encoder.close()

    def _open(self, fit: Fit) -> Any:
        if self.kind == "gif":
            return Gif(self.to, fit.size)
        if self.kind == "webp":
            return WebP(self.to, fit.size, fit.alpha, self.lossless)
        return Video(
            self.to, self.kind, fit.size, fit.alpha, self.rate, TICK if self.own_times else 1 / self.rate
        )

    def _write_last(self, stop: int) -> None:
        assert self._last is not None
        pixels, start = self._last
        self._encoder.add(pixels, stop - start)


@dataclass(frozen=True)
class Fit:
    """How frames become those of a format."""

    shape: tuple[int, ...]  # (H, W, C) of the frames
    scale: int  # whole factor by which they are enlarged
    pad: tuple[int, int]  # pixels that are added below and at the right
    alpha: bool  # of the file
    notes: tuple[str, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], kind: str, lossless: bool) -> Fit:
        """Raises LimnerError for sides that the format does not have."""
        scale, notes = 1 if lossless else enlargement(*shape[:2]), []
        height, width = (scale * side for side in shape[:2])
        pad = (0, 0)
        if kind in ("mp4", "webm"):
            pad = (height % 2, width % 2)
        if any(pad):
            padded = f"{width + pad[1]}x{height + pad[0]}"
            notes.append(f"{width}x{height} pixels are padded to {padded}, since {kind} has even sides")
        longest = {"gif": Gif.longest, "webp": WebP.longest}.get(kind, Video.longest)
        if max(height, width) > longest:
            raise LimnerError(
                f"A {kind} has at most {longest:,} pixels a side, and the clip has {max(height, width):,}: write a "
                "folder of PNGs."
            )
        if shape[2] == 4 and kind == "mp4":
            notes.append("mp4 has no alpha, so white shows")
        if shape[2] == 4 and kind == "gif":
            notes.append("the pixels of a GIF are opaque or clear, so alpha is rounded")
        return cls(shape, scale, pad, shape[2] == 4 and kind != "mp4", tuple(notes))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the file."""
        return self.scale * self.shape[1] + self.pad[1], self.scale * self.shape[0] + self.pad[0]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape != self.shape:
            raise ValueError(f"a frame of {pixels.shape} in a clip of {self.shape}")
        if pixels.shape[2] == 4 and not self.alpha:
            alpha = pixels[..., 3:].astype(np.float32) / 255
            pixels = np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        if pixels.shape[2] == 1:
            pixels = pixels.repeat(3, 2)
        if self.scale > 1:
            pixels = pixels.repeat(self.scale, 0).repeat(self.scale, 1)
        return (
            np.pad(pixels, ((0, self.pad[0]), (0, self.pad[1]), (0, 0)), "edge") if any(self.pad) else pixels
        )


def enlargement(height: int, width: int) -> int:
    """The whole factor by which a clip is enlarged to be looked at: to LEAST pixels of its shorter side."""
    return max(1, min(math.ceil(LEAST / min(height, width)), LARGEST // max(height, width)))
