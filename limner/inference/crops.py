"""A sheet of details: the given picture in whole pixels, bicubic, the result, and the truth where it is known."""

from __future__ import annotations

from glob import escape
from pathlib import Path

import numpy as np
from PIL import Image

from limner.core import LimnerError
from limner.data.images.whole import WholePicture, as_image, open_whole, resized, straight
from limner.inference.apply_files import Job, Work
from limner.inference.options import ApplyOptions
from limner.pictures.grid import save_grid

SHOWN = 128  # pixels a side of a detail of the result


def save_crops(work: Work, scale: int, options: ApplyOptions) -> None:
    """Write the details of ``options.crops`` places where most is to be seen, over all pictures. Raises LimnerError."""
    made = [job for job in work.jobs if job.target.exists()]
    chosen = [made[i * len(made) // options.crops] for i in range(options.crops)]
    shown: list[Image.Image] = []
    captions: list[str] = []
    columns = 0
    for job in dict.fromkeys(chosen):
        given, result, truth = open_whole(job.source), open_whole(job.target), _truth(job, work, options)
        if options.side_by_side:
            half = result.pixels.shape[1] // 2
            result = WholePicture(result.pixels[:, half:])
        side = max(1, SHOWN // scale)
        for top, left in details(given.pixels, side, chosen.count(job)):
            row = _row(given, result, truth, (top, left, side), scale)
            columns = max(columns, len(row))
            shown += row.values()
            captions += [f"{job.name}: {what}" for what in row]
            blank = Image.new("RGB", next(iter(row.values())).size, "white")
            shown += [blank] * (columns - len(row))
            captions += [""] * (columns - len(row))
    if shown:
        save_grid(work.sheet, shown, captions, columns)


def _row(
    given: WholePicture,
    result: WholePicture,
    truth: WholePicture | None,
    place: tuple[int, int, int],
    scale: int,
) -> dict[str, Image.Image]:
    """One detail of each picture, by what it is; ``place`` is top, left and side in given pixels."""
    top, left, side = place
    part = given.pixels[top : top + side, left : left + side]
    size = part.shape[1] * scale, part.shape[0] * scale
    row = {"given": resized(part, size, Image.Resampling.NEAREST)}
    if scale > 1:
        row["bicubic"] = resized(part, size, Image.Resampling.BICUBIC)
    row["result"] = _part(result.pixels, place, scale)
    if truth is not None and truth.pixels.shape[:2] == result.pixels.shape[:2]:
        row["truth"] = _part(truth.pixels, place, scale)
    return {what: as_image(straight(np.ascontiguousarray(pixels))) for what, pixels in row.items()}


def _part(pixels: np.ndarray, place: tuple[int, int, int], scale: int) -> np.ndarray:
    top, left, side = (scale * at for at in place)
    return pixels[top : top + side, left : left + side]


def details(pixels: np.ndarray, side: int, count: int) -> list[tuple[int, int]]:
    """(top, left) of the ``count`` squares whose brightness varies most, none over another where there is room."""
    grey = pixels[..., :3].astype(np.float32).mean(-1)
    places = [
        (float(grey[y : y + side, x : x + side].std()), y, x)
        for y in range(0, max(1, grey.shape[0] - side + 1), side)
        for x in range(0, max(1, grey.shape[1] - side + 1), side)
    ]
    ranked = sorted(places, key=lambda place: (-place[0], *place[1:]))
    return [(y, x) for _, y, x in ranked[:count]]


def _truth(job: Job, work: Work, options: ApplyOptions) -> WholePicture | None:
    """The true picture of the same name, whatever its format; None where there is none."""
    if not options.truth:
        return None
    path = Path(options.truth)
    if work.source.is_dir() or path.is_dir():
        place = path / job.name
        found = sorted(place.parent.glob(f"{escape(place.stem)}.*")) if place.parent.is_dir() else []
        return open_whole(found[0]) if found else None
    if not path.exists():
        raise LimnerError(f"There is no picture {path} to show as --truth.")
    return open_whole(path)
