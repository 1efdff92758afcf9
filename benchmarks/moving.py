"""The oracle of `moving` on real clips, and what runs of clips draw of it: from prompts, from given frames, and on.

    python benchmarks/moving.py oracle --n 1000 --record
    python benchmarks/moving.py followed runs/video runs/shared runs/flow --record
    python benchmarks/moving.py given runs/video --n 128 --record
    python benchmarks/moving.py longer runs/video --n 128 --to docs/longer.svg --record
    python benchmarks/moving.py speed runs/video runs/flow --threads 2 --record

``oracle`` reads held-out clips, and the same with their frames shuffled. ``followed`` draws held-out prompts, and
measures the distances of clips and of their frames to three times as many real ones, in floors; a run of still images
draws each frame by itself. ``given`` draws held-out clips whose first frame is given, or first and last. ``longer``
goes on with the frames of held-out clips to 64 frames, and plots how many are right up to each frame. ``speed`` times a
clip alone and in a batch, and as many still images of a run of them, in turns.
Right: number, shapes and colours in every frame, and each thing moves as told. Every share has its 95% interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record
from text import Cell, share
from torch import Tensor

from limner.core import Condition
from limner.data.sources.moving.digits import digit_cover
from limner.data.sources.moving.draw import Clip, shape_cover
from limner.data.sources.moving.oracle import OF_DIGITS, OF_SHAPES, Oracle, Reading
from limner.data.sources.moving.scenes import Scene, captions
from limner.evaluation.figures import Described, measure
from limner.evaluation.real import as_bytes, as_saved
from limner.evaluation.spaces import find_all
from limner.inference.pipeline import Pipeline, generate
from limner.metrics.features import Features
from limner.metrics.motion import jitter, motion
from limner.pictures.grid import save_grid
from limner.progress import ignore

SEED = 17  # of held-out clips that no packing has
REFERENCE = 18  # of others, to which distances are measured
DESCRIBED = 32  # clips that are described at a time
ATTRIBUTES = ("exact", "kept", "motion", "shape", "colour", "exact_with_size")


def real_clips(
    oracle: Oracle, n: int, size: tuple[int, int], frames: int, rate: float | None = None, seed: int = SEED
) -> tuple[np.ndarray, list[Scene]]:
    """Held-out clips, uint8 [n, T, H, W, 3], and what they show."""
    cover = shape_cover if oracle is OF_SHAPES else digit_cover
    scenes = oracle.scenes(n, seed, held_out=True)
    first = (seed - SEED + 1) * 10**6  # beyond the numbers of the clips that are trained on
    drawn = [Clip(scene, first + i, cover).draw(*size, frames, rate) for i, scene in enumerate(scenes)]
    return np.stack(drawn), scenes


def as_floats(clips: np.ndarray) -> Tensor:
    """uint8 [N, T, H, W, C] -> [N, C, T, H, W] in [-1, 1]."""
    return torch.from_numpy(clips).movedim(-1, 1) / 127.5 - 1


def pixels(clips: Tensor) -> np.ndarray:
    """[N, C, T, H, W] in [-1, 1] -> uint8 [N, T, H, W, C], as they are written."""
    return as_bytes(as_saved(clips))


def shares(readings: Sequence[Reading], scenes: Sequence[Scene]) -> dict[str, Cell]:
    rows = [reading.right(scene) for reading, scene in zip(readings, scenes, strict=True)]
    return {name: share([row[name] for row in rows]) for name in ATTRIBUTES} | {"n": len(rows)}


# ---- the oracle


def oracle_table(n: int) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    asked = [
        ("moving", OF_SHAPES, (32, 32), 16, 8.0), ("moving", OF_SHAPES, (64, 64), 16, 8.0),
        ("moving", OF_SHAPES, (32, 48), 24, 12.0), ("moving", OF_SHAPES, (32, 32), 64, 8.0),
        ("moving-digits", OF_DIGITS, (32, 32), 16, 8.0),
    ]  # fmt: skip
    for name, oracle, size, frames, rate in asked:
        some = n if (size, frames) == ((32, 32), 16) else max(n // 5, 20)
        clips, scenes = real_clips(oracle, some, size, frames, rate)
        order = np.random.default_rng(0)
        shuffled = np.stack([clip[order.permutation(frames)] for clip in clips])
        about: dict[str, Cell] = {
            "data": name,
            "clips": f"{frames} of {size[0]}x{size[1]}, {rate:g} a second",
        }
        row = shares(oracle.read(clips), scenes)
        row["shuffled"] = shares(oracle.read(shuffled), scenes)["exact"]
        rows.append(about | row)
        print(rows[-1], flush=True)
    return rows


# ---- what runs draw


def oracle_of(pipeline: Pipeline) -> Oracle:
    return OF_DIGITS if "moving-digits" in pipeline.loaded.run.sources else OF_SHAPES


def sampling_of(pipeline: Pipeline, order: str) -> Any:
    sampling = pipeline.model.Sampling()
    return replace(sampling, order=order) if order else sampling


def drawn_by(
    pipeline: Pipeline, scenes: Sequence[Scene], batch: int, sampling: Any,
    given: tuple[Tensor, Tensor] | None = None, frames: int = 16,
) -> tuple[Tensor, float]:  # fmt: skip
    """[N, C, T, H, W], one clip a scene, and the seconds that each took; ``given``: clips and their mask."""
    texts = captions(scenes, "en")
    n, start = len(texts), time.perf_counter()
    if pipeline.spec.frames == 1:  # each frame by itself
        repeated = [text for text in texts for _ in range(frames)]
        condition = Condition(len(repeated), text=repeated)
        images = generate(
            pipeline.model, condition, range(len(repeated)), sampling, precision=pipeline.precision
        )
        clips = images.unflatten(0, (n, frames)).transpose(1, 2)
    else:
        image, mask = given or (None, None)
        condition = Condition(n, text=texts, image=image, mask=mask)
        clips = generate(pipeline.model, condition, range(n), sampling, batch, precision=pipeline.precision)
    return clips, (time.perf_counter() - start) / n


def row_of(
    name: str, pipeline: Pipeline, clips: Tensor, scenes: Sequence[Scene], real: Tensor
) -> dict[str, Cell]:
    """What the oracle reads, and motion and jitter as ratios to those of real clips."""
    header = pipeline.loaded.header
    row: dict[str, Cell] = {"run": name}
    readings = oracle_of(pipeline).read(pixels(clips))
    row |= shares(readings, scenes)
    for things in (1, 2):
        exact = [
            r.right(s)["exact"] for r, s in zip(readings, scenes, strict=True) if len(s.actors) == things
        ]
        row[f"exact_{things}"] = share(exact) if exact else None
    for figure_name, figure in (("motion_ratio", motion), ("jitter_ratio", jitter)):
        row[figure_name] = round(float(figure(as_saved(clips)).mean() / figure(real).mean()), 3)
    return row | {"seen": header["seen"], "seconds": round(header["seconds"])}


def described(clips: Tensor, features: Features, first: int) -> Described:
    """The features of clips [N, C, T, H, W]; on one random frame of each where they are of images."""
    places = torch.randint(clips.shape[2], (len(clips),), generator=torch.Generator().manual_seed(first))
    inputs = clips if features.clips else clips[torch.arange(len(clips)), :, places]
    values = torch.cat([features.of(part) for part in as_saved(inputs).split(DESCRIBED)])
    return Described(values, np.arange(first, first + len(clips)))


def distances(clips: Tensor, oracle: Oracle, rate: float | None) -> dict[str, Cell]:
    """Frechet distances of clips and of their frames to real ones of held-out captions, in floors; none of few."""
    n, (frames, *size) = len(clips), clips.shape[2:]
    if n < 16:
        return {}
    real, _ = real_clips(oracle, 3 * n, (size[0], size[1]), frames, rate, REFERENCE)
    row: dict[str, Cell] = {}
    for name, features in zip(
        ("clip_distance", "frame_distance"), find_all("random", clips=True), strict=True
    ):
        sides = described(clips, features, 0), described(as_floats(real), features, n)
        figure = measure(*sides, ignore)["frechet"]
        row[name] = round(figure.value / figure.floor, 2)
    return row


def save_sheet(folder: str, name: str, clips: Tensor, scenes: Sequence[Scene], rows: int = 12) -> None:
    """Frames across, clips down."""
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        frames = clips[:rows, :, :: max(1, clips.shape[2] // 16)].transpose(1, 2)
        save_grid(Path(folder) / f"{name}.png", frames.flatten(0, 1), columns=frames.shape[1])
        texts = "\n".join(captions(scenes[:rows], "en"))
        (Path(folder) / f"{name}.txt").write_text(texts + "\n", "utf-8")


def followed(given: argparse.Namespace) -> list[dict[str, Cell]]:
    """A row a run."""
    rows = []
    for run in given.run:
        pipeline = Pipeline(run, "cpu")
        size, frames = (pipeline.spec.height, pipeline.spec.width), pipeline.spec.frames
        frames = frames if frames > 1 else given.frames
        real, scenes = real_clips(oracle_of(pipeline), given.n, size, frames, pipeline.spec.rate)
        clips, each = drawn_by(
            pipeline, scenes, given.batch, sampling_of(pipeline, given.order), frames=frames
        )
        row = row_of(Path(run).name, pipeline, clips, scenes, as_floats(real)) | {"s": round(each, 3)}
        row |= distances(clips, oracle_of(pipeline), pipeline.spec.rate)
        print(row, flush=True)
        save_sheet(given.sheets, f"followed-{row['run']}", clips, scenes)
        rows.append(row)
    return rows


def given_frames(given: argparse.Namespace) -> list[dict[str, Cell]]:
    """A row a run and a way: first frame, or first and last one."""
    ways: dict[str, Sequence[int]] = {"the first frame": (0,), "the first and the last": (0, -1)}
    rows = []
    for run in given.run:
        pipeline = Pipeline(run, "cpu")
        spec = pipeline.spec
        real, scenes = real_clips(
            oracle_of(pipeline), given.n, (spec.height, spec.width), spec.frames, spec.rate
        )
        truth = as_floats(real)
        for way, kept in ways.items():
            mask = torch.ones(given.n, 1, spec.frames, 1, 1)
            mask[:, :, list(kept)] = 0
            clips, _ = drawn_by(
                pipeline, scenes, given.batch, sampling_of(pipeline, given.order), (truth, mask)
            )
            row = row_of(Path(run).name, pipeline, clips, scenes, truth) | {"given": way}
            row["unchanged"] = bool((clips[:, :, list(kept)] == truth[:, :, list(kept)]).all())
            print(row, flush=True)
            save_sheet(given.sheets, f"given-{row['run']}-{len(kept)}", clips, scenes)
            rows.append(row)
    return rows


def speed(given: argparse.Namespace) -> list[dict[str, Cell]]:
    """A row a run and a batch: the median of five rounds, in each of which every row is timed once."""
    asked: dict[tuple[str, str], tuple[Pipeline, int]] = {}
    for run in given.run:
        pipeline, name = Pipeline(run, "cpu"), Path(run).name
        if pipeline.spec.frames == 1:
            asked[name, f"{given.frames} images"] = pipeline, 1
        else:
            asked[name, "one clip"] = pipeline, 1
            asked[name, f"{given.batch} clips"] = pipeline, given.batch
    times: dict[tuple[str, str], list[float]] = {key: [] for key in asked}
    for _ in range(6):  # the first round warms up
        for key, (pipeline, clips) in asked.items():
            scenes = oracle_of(pipeline).scenes(clips, SEED, held_out=True)
            _, each = drawn_by(pipeline, scenes, clips, pipeline.model.Sampling(), frames=given.frames)
            times[key].append(each)
    rows: list[dict[str, Cell]] = [
        {"run": run, "what": what, "s": round(float(np.median(own[1:])), 3)}
        for (run, what), own in times.items()
    ]
    print(*rows, sep="\n", flush=True)
    return rows


def right_frames(reading: Reading, scene: Scene, frames: int) -> int:
    """How many frames of a clip are right before it breaks: 0 where it shows something else from the start."""
    right = reading.right(scene)
    if not (right["shape"] and right["colour"] and right["motion"]):
        return 0
    return frames if reading.broken_at is None else reading.broken_at


def longer(given: argparse.Namespace) -> tuple[list[dict[str, Cell]], dict[str, list[float]]]:
    """A row a run, and the share of its clips that are right up to each frame."""
    rows, curves = [], {}
    for run in given.run:
        pipeline = Pipeline(run, "cpu")
        spec, oracle = pipeline.spec, oracle_of(pipeline)
        real, scenes = real_clips(oracle, given.n, (spec.height, spec.width), given.frames, spec.rate)
        truth, mask = as_floats(real), torch.ones(given.n, 1, given.frames, 1, 1)
        mask[:, :, : spec.frames] = 0
        start = torch.where(mask > 0, torch.zeros_like(truth), truth)
        clips, each = drawn_by(
            pipeline, scenes, given.batch, sampling_of(pipeline, given.order), (start, mask)
        )
        row = row_of(Path(run).name, pipeline, clips, scenes, truth) | {"s": round(each, 2)}
        until = [
            right_frames(r, s, given.frames) for r, s in zip(oracle.read(pixels(clips)), scenes, strict=True)
        ]
        row |= {"frames": given.frames, "median": float(np.median(until))}
        curves[str(row["run"])] = [float(np.mean(np.array(until) > k)) for k in range(given.frames)]
        print(row, flush=True)
        save_sheet(given.sheets, f"longer-{row['run']}", clips, scenes)
        rows.append(row)
    return rows, curves


def plot(curves: dict[str, list[float]], given_frames: int) -> str:
    """An SVG of the share of clips that are right up to each frame."""
    width, height, left, top = 640, 320, 50, 20
    most = max(map(len, curves.values()))
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")

    def x(frame: float) -> float:
        return left + frame / most * (width - left - 130)

    def y(value: float) -> float:
        return top + (1 - value) * (height - top - 40)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    ]
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    parts.append(
        f'<rect x="{left}" y="{top}" width="{x(given_frames) - left:.1f}" height="{y(0) - top}" fill="#f0f0f0"/>'
    )
    for fifth in range(6):
        parts.append(f'<path d="M{left},{y(fifth / 5)} H{x(most)}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{left - 8}" y="{y(fifth / 5) + 4}" font-size="12" text-anchor="end">{20 * fifth}%</text>'
        )
    for frame in range(0, most + 1, 16):
        parts.append(
            f'<text x="{x(frame)}" y="{y(0) + 18}" font-size="12" text-anchor="middle">{frame}</text>'
        )
    parts.append(
        f'<text x="{left}" y="{height - 4}" font-size="12">frames (grey: given), and clips still right</text>'
    )
    for i, (name, values) in enumerate(curves.items()):
        points = " ".join(f"{x(k + 1):.1f},{y(value):.1f}" for k, value in enumerate(values))
        colour = colours[i % len(colours)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{width - 120}" y="{top + 14 + 18 * i}" font-size="12" fill="{colour}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


# ---- the command

_READ = {
    "exact": "right", "kept": "things right in every frame", "motion": "motion", "shape": "shape", "colour": "colour",
    "exact_with_size": "right, with sizes", "n": "n",
}  # fmt: skip
_RUN = {"exact_1": "right, of one thing", "exact_2": "right, of two", "motion_ratio": "motion, of real",
        "jitter_ratio": "jitter, of real", "seen": "clips seen", "seconds": "seconds of training"}  # fmt: skip
COLUMNS = {
    "oracle": {"data": "data", "clips": "clips", **_READ, "shuffled": "right, frames shuffled"},
    "followed": {"run": "run", **_READ, **_RUN, "clip_distance": "clip distance, floors",
                 "frame_distance": "frame distance, floors", "s": "s a clip"},
    "given": {"run": "run", "given": "given", **_READ, "unchanged": "given frames come back", **_RUN},
    "speed": {"run": "run", "what": "drawn at a time", "s": "s for each clip, or for the images"},
    "longer": {"run": "run", "frames": "frames", **_READ, "median": "frames right, median", **_RUN, "s": "s a clip"},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=COLUMNS)
    parser.add_argument("run", nargs="*")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument(
        "--frames", type=int, default=0, help="of drawn clips; default: 64 for longer, else 16"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--to", default="", help="longer: an .svg to write")
    parser.add_argument("--sheets", default="", help="a folder for sheets of clips")
    parser.add_argument(
        "--order", default="", help="of a window's frames: keyframes, together, pyramid or frames"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    given.frames = given.frames or (64 if given.table == "longer" else 16)
    torch.set_num_threads(given.threads)
    tables: dict[str, Callable[[], list[dict[str, Cell]]]] = {
        "oracle": lambda: oracle_table(given.n), "followed": lambda: followed(given),
        "given": lambda: given_frames(given), "speed": lambda: speed(given),
    }  # fmt: skip
    if given.table == "longer":
        rows, curves = longer(given)
        if given.to:
            first = Pipeline(given.run[0], "cpu").spec.frames
            Path(given.to).write_text(plot(curves, first), "utf-8")
    else:
        rows = tables[given.table]()
    if given.record:
        record(f"moving-{given.table}", COLUMNS[given.table], rows)


if __name__ == "__main__":
    main()
