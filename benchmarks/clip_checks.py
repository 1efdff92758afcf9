"""Do distances of clips see what is wrong with time? Real clips against the same kind with their frames spoiled.

    python benchmarks/clip_checks.py moving EMOJI SPRITES --record

The same clips are spoiled and compared with themselves, as ``limner evaluate`` would: shuffled frames, the first
frame all the time, backwards, each frame moved by a pixel or none; and what hardly shows, noise of one and of four
grey levels in each frame. Frechet distances are in floors: what as many other real clips score in their place.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from record import record
from torch import Tensor
from torch.nn import functional as F

from limner.core import DataOptions
from limner.data import open_data
from limner.evaluation import figures
from limner.evaluation.figures import Described
from limner.evaluation.images import Images, frames_of
from limner.evaluation.results import Figure
from limner.evaluation.spaces import find_all
from limner.metrics.features import Features
from limner.progress import ignore

BATCH = 32  # clips at a time
COLUMNS = {
    "data": "clips", "n": "n", "size": "frames x height x width", "spoiled": "spoiled",
    "frechet": "Frechet distance, floors", "kid": "kernel distance (95%)", "kid_floor": "its floor",
    "frames": "Frechet distance of frames, floors",
}  # fmt: skip


Spoil = Callable[[Tensor, torch.Generator], Tensor]  # of [B, C, T, H, W]


def shuffled(clips: Tensor, generator: torch.Generator) -> Tensor:
    frames = clips.shape[2]
    return torch.stack([clip[:, torch.randperm(frames, generator=generator)] for clip in clips])


def frozen(clips: Tensor, generator: torch.Generator) -> Tensor:
    return clips[:, :, :1].expand_as(clips)


def backwards(clips: Tensor, generator: torch.Generator) -> Tensor:
    return clips.flip(2)


def jittered(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Each frame moved by -1, 0 or 1 pixels along each axis; edges are repeated."""
    height, width = clips.shape[-2:]
    frames = clips.movedim(2, 1).flatten(0, 1)  # [B T, C, H, W]
    padded = F.pad(frames, (1, 1, 1, 1), mode="replicate")
    places = torch.randint(3, (len(frames), 2), generator=generator).tolist()
    moved = [frame[:, y : y + height, x : x + width] for frame, (y, x) in zip(padded, places, strict=True)]
    return torch.stack(moved).unflatten(0, (len(clips), -1)).movedim(1, 2)


def noisy(levels: float) -> Spoil:
    def add(clips: Tensor, generator: torch.Generator) -> Tensor:
        return (clips + torch.randn(clips.shape, generator=generator) * levels / 127.5).clamp(-1, 1)

    return add


SPOILED: dict[str, Spoil] = {
    "shuffled": shuffled, "frozen": frozen, "backwards": backwards,
    "jittered": jittered, "noise, 1 level": noisy(1), "noise, 4 levels": noisy(4),
}  # fmt: skip


def describe(clips: Images, features: Features, spoil: Spoil) -> Described:
    """The features of spoiled clips; on frames where they are of images."""
    generator, parts = torch.Generator().manual_seed(0), []
    places = torch.randint(frames_of(clips.source), (len(clips),), generator=generator)
    for batch in clips.batches(BATCH):
        batch = spoil(batch, generator)
        some, places = places[: len(batch)], places[len(batch) :]
        parts.append(features.of(batch if features.clips else batch[torch.arange(len(batch)), :, some]))
    return Described(torch.cat(parts), np.arange(len(clips)))


def measure(
    source: str, options: DataOptions, size: tuple[int, int] | None, most: int
) -> list[dict[str, object]]:
    """A row for each way to spoil the clips of a source."""
    data = open_data([source], size=size, options=options, progress=False)
    data = data.part(data.order(0, min(most, len(data)), 0))
    clips = Images.of(data, data.spec.channels)
    features = find_all("random", clips=True)
    real = [describe(clips, each, lambda clips, generator: clips) for each in features]
    rows: list[dict[str, object]] = []
    for name, spoil in SPOILED.items():
        drawn = [describe(clips, each, spoil) for each in features]
        others = [replace(each, keys=each.keys + len(clips)) for each in drawn]
        of_clips, of_frames = (figures.measure(*pair, ignore) for pair in zip(others, real, strict=True))
        kid = of_clips["kid"]
        rows.append({
            "data": Path(source).name, "n": kid.floor_n, "size": "x".join(map(str, data.spec.shape[1:])),
            "spoiled": name, "frechet": in_floors(of_clips["frechet"]),
            "kid": [round(value, 3) for value in (kid.value, kid.low, kid.high)], "kid_floor": round(kid.floor, 3),
            "frames": in_floors(of_frames["frechet"]),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def in_floors(figure: Figure) -> float:
    return round(figure.value / figure.floor, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", help="built-in sets or folders of clips")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--n", type=int, default=1000, help="clips of each source, at most")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/clip_checks.json")
    given = parser.parse_args()
    options = DataOptions(frames=given.frames, labels=False, captions=False)
    rows = []
    for source in given.sources:
        rows += measure(source, options, (given.size, given.size), given.n)
    if given.record:
        note = "n spoiled clips against as many real ones; a floor puts n other real ones in their place"
        print(f"Written: {record('clip_checks', COLUMNS, rows, note)}")


if __name__ == "__main__":
    main()
