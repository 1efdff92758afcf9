"""Animations as GIF files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from limner import files
from limner.core import Canvas
from limner.pictures.grid import encode, grid


def save_gif(path: Path, frames: Sequence[Image.Image], milliseconds: int | Sequence[int]) -> None:
    """Write an endless animation, whole or not at all; ``milliseconds`` of every frame, or of each."""
    first, *rest = frames
    options = {"save_all": True, "append_images": rest, "duration": milliseconds, "loop": 0}
    files.write_bytes(path, encode(first, "GIF", **options))


class Film:
    """The denoised guesses of the first batch, step by step, a sheet a frame; ``on_canvas`` of ``generate``."""

    FRAMES = 48  # at most, where there are many steps

    def __init__(self, captions: Sequence[str] | None = None):
        self.captions = captions
        self.frames: list[Image.Image] = []
        self.ended = False

    def __call__(self, canvas: Canvas) -> None:
        last = canvas.done == canvas.total
        if not self.ended and (last or canvas.done % max(1, canvas.total // self.FRAMES) == 0):
            picture = canvas.preview().float().cpu()
            self.frames.append(grid(picture, self.captions[: len(picture)] if self.captions else None))
            self.ended = last

    def save(self, path: Path) -> None:
        each = max(40, 3000 // len(self.frames))
        save_gif(path, self.frames, [each] * (len(self.frames) - 1) + [2000])  # the result stays a while
