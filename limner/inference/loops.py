"""A clip of a latent space that ends where it began."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limner import files
from limner.fields import JsonResult
from limner.inference import latents
from limner.inference.explore import find_anchors, open_space
from limner.inference.options import ExploreOptions, LoopOptions
from limner.pictures.clips import check_clip, save_clip
from limner.progress import bar
from limner.settings import LimnerError

FEWEST = 3  # points that a loop passes: two would be there and back


@dataclass(frozen=True)
class Loop(JsonResult):
    """What ``save_loop`` wrote."""

    run: str  # digest
    to: str
    frames: int
    seconds: float
    points: list[str]  # names of the points that it passes, in order
    label: str
    notes: list[str]  # what the format could not hold


def save_loop(
    run: str | Path, to: str | Path, options: ExploreOptions = ExploreOptions(), how: LoopOptions = LoopOptions(), *,
    device: str = "auto", quiet: bool = False,
) -> Loop:  # fmt: skip
    """Write a seamless clip through points of a latent space, about one a second: its last frame leads to its first.

    The points are those of ``explore``. Raises LimnerError.
    """
    path = Path(to)
    if len(options.label) > 1:
        raise LimnerError("A loop shows one class, and several are named: leave one --label.")
    check_clip(path, how.rate)
    files.check_writable(path, folder=not path.suffix)
    if not path.suffix:
        files.refuse_other_files(path, "--loop")
    frames = max(1, round(how.seconds * how.rate))
    if frames <= FEWEST:
        raise LimnerError(
            f"{how.seconds:g} seconds at {how.rate:g} frames a second are {frames} frames, too few for a loop: raise "
            "--seconds or --rate."
        )
    space = open_space(run, device)
    stops = min(max(FEWEST, round(how.seconds), len(options.start)), frames)
    anchors = find_anchors(space, options, stops)
    label = anchors.labels[0]
    points = latents.evenly(anchors.points(label)[:stops], frames, space.interpolate)
    with bar("drawing a loop", quiet) as watch:
        images = space.paint(points, [label], watch)
    notes = save_clip(path, images, how.rate, bits=space.spec.bits)
    return Loop(
        run=space.digest, to=str(path), frames=frames, seconds=frames / how.rate,
        points=list(anchors.names[:stops]), label=label, notes=notes,
    )  # fmt: skip
