"""What `limner apply` did, for both pictures and clips."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from limner.data.images.decode import as_channels
from limner.data.images.whole import WholePicture, resized
from limner.fields import JsonResult

Notes = dict[str, list[str]]  # what was changed -> the pictures


@dataclass(frozen=True, kw_only=True)
class Applied(JsonResult):
    """What a call of ``apply`` did."""

    to: str
    made: int  # pictures that this call wrote, or frames of a clip
    there: int = 0  # that an earlier, unfinished call had written
    failed: dict[str, str] = field(default_factory=dict)  # picture -> why it could not be used
    notes: Notes = field(default_factory=dict)
    crops: str | None = None  # the sheet of details
    clip: bool = False  # whether a clip was given


def side_by_side(given: WholePicture, result: WholePicture) -> WholePicture:
    """Both at the size of the result, the given picture at the left in whole pixels."""
    height, width = result.pixels.shape[:2]
    channels = 4 if given.alpha or result.alpha else 1 if given.grey and result.grey else 3
    halves = [
        as_channels(
            pixels if pixels.shape[2] != 2 else pixels[..., [0, 0, 0, 1]],
            channels,
            (255, 255, 255),
            pixels.dtype,
        )
        for pixels in (resized(given.pixels, (width, height), Image.Resampling.NEAREST), result.pixels)
    ]
    return replace(result, pixels=np.concatenate(halves, 1))


def summary(applied: Applied) -> list[str]:
    """Sentences on what was done, for the person."""
    there = f", and {applied.there:,} were there already" if applied.there else ""
    what = "frame" if applied.clip else "picture"
    said = [f"{applied.made:,} {what}{'s' * (applied.made != 1)} in {applied.to}{there}."]
    for note, names in applied.notes.items():
        others = f" and {len(names) - 1:,} others" if len(names) > 1 else ""
        said.append(f"{names[0]}{others}: {note}.")
    return said + ([f"Details are in {applied.crops}."] if applied.crops else [])
