"""How steady `limner apply` is on clips: photographs panned by a few pixels a frame, with and without fixed statistics.

    python benchmarks/panning.py runs/paint photos/ --n 8 --record

The truth is known: the result pans too. Neighbouring frames are laid over each other and compared, in dB, over all
that both show; beside them, a clip that stands still.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from record import record

from limner.inference.apply import apply
from limner.inference.options import ApplyOptions
from limner.inference.tiles import Translator
from limner.pictures.clips import clip_file

COLUMNS = {"statistics": "statistics", "n": "photographs", "db": "alike, dB", "least": "the least alike pair, dB",
           "still": "of a still clip, levels that differ at most"}  # fmt: skip


def panned(photo: Path, side: int, frames: int, step: int) -> np.ndarray:
    """[T, side, side, 3]: a window that moves right over the middle of a photograph."""
    with Image.open(photo) as image:
        pixels = np.asarray(image.convert("RGB"))
    top = (pixels.shape[0] - side) // 2
    return np.stack([pixels[top : top + side, step * t : step * t + side] for t in range(frames)])


def painted(run: str, frames: np.ndarray, folder: Path, fixed: bool) -> np.ndarray:
    """[T, H, W, 3] that `limner apply` makes of a clip."""
    with clip_file(folder / "given.webp", 8, lossless=True) as clip:
        for frame in frames:
            clip.add(frame)
    options = ApplyOptions(lossless=True, overwrite=True)
    with nullcontext() if fixed else mock.patch.object(Translator, "fix_statistics"):
        apply(run, folder / "given.webp", folder / "made.webp", options, quiet=True)
    with Image.open(folder / "made.webp") as image:
        found = []
        for i in range(image.n_frames):
            image.seek(i)
            found.append(np.asarray(image.convert("RGB")))
    return np.stack(found)


def alike(frames: np.ndarray, step: int) -> list[float]:
    """Of each pair of neighbours over what both show, in dB."""
    pairs = zip(frames[:-1, :, step:].astype(float), frames[1:, :, :-step], strict=True)
    return [10 * math.log10(255**2 / max(np.square(a - b).mean(), 1e-9)) for a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("photos", type=Path)
    for flag, default in {"n": 8, "side": 256, "frames": 16, "step": 4}.items():
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wide = given.side + given.step * given.frames
    photos = []
    for photo in sorted(given.photos.rglob("*.*")):
        with Image.open(photo) as image:
            if image.width >= wide and image.height >= given.side:
                photos.append(photo)
    rows = []
    for fixed in (True, False):
        found, still = [], 0
        with tempfile.TemporaryDirectory() as folder:
            for photo in photos[: given.n]:
                frames = panned(photo, given.side, given.frames, given.step)
                found.append(alike(painted(given.run, frames, Path(folder), fixed), given.step))
                same = painted(given.run, frames[:1].repeat(3, 0), Path(folder), fixed).astype(int)
                still = max(still, int(np.abs(same - same[0]).max()))
        rows.append({
            "statistics": "fixed over the clip" if fixed else "of each frame", "n": len(found),
            "db": round(float(np.mean(found)), 2), "least": round(float(np.min(found)), 2), "still": still,
        })  # fmt: skip
        print(rows[-1], flush=True)
    if given.record:
        record(
            "panning",
            COLUMNS,
            rows,
            f"{given.frames} frames of {given.side}x{given.side}, {given.step} pixels a frame",
        )


if __name__ == "__main__":
    main()
