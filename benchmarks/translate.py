"""What translation is worth where the truth is known: one function a table, each of runs that are there.

    limner train bridge pairs:shapes --size 32 --budget 15m --out runs/ink
    limner train bridge pairs:shapes --size 32 --budget 15m --data.reverse --out runs/ink-back
    limner train pix2pix pairs:shapes --size 32 --budget 15m --out runs/ink-pix2pix
    limner train cyclegan domains:shapes --size 32 --budget 30m --seed 0 --out runs/unpaired-0
    limner train bridge emoji --size 32 --budget 15m --model.degrade grey --out runs/colour
    python benchmarks/translate.py shapes runs/ink runs/ink-back runs/ink-pix2pix runs/unpaired-0 --record
    python benchmarks/translate.py colour runs/colour --record
    python benchmarks/translate.py pairs runs/emoji --record

``shapes`` translates scenes whose combinations are in no training set, filled ones to outlined ones and back, as far
as a run learned either; the oracle reads the results in both styles. ``colour`` measures the grey of coloured images,
``pairs`` the held-out pairs of any run that has them. A run that draws in several calls is measured with each of
``--steps``. Shares have their 95% interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record
from torch import Tensor

from limner.core import Batch, Condition, Draws, given_pictures
from limner.data.open import open_like
from limner.data.sources import shapes
from limner.evaluation.real import as_bytes, as_saved
from limner.inference.pipeline import Pipeline
from limner.metrics.pixels import psnr
from limner.metrics.probes import wilson
from limner.networks.images.channels import with_channels
from limner.pictures.grid import save_grid

Cell = float | int | str | list[float]
BATCH = 64
MEASURED = "style", "shape", "colour", "place"


def settings(pipeline: Pipeline, steps: Sequence[int], both: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what a row is called, options of drawing): each number of steps and, if ``both``, each direction it has."""
    names = {f.name for f in fields(pipeline.model.Sampling)}
    if "direction" in names:
        ways = ("forward", "backward") if both and pipeline.model.config.kind == "cyclegan" else ("forward",)
        yield from ((way, {"direction": way}) for way in ways)
    elif "steps" in names:
        yield from ((f"{n} call{'s' * (n > 1)}", {"steps": n}) for n in steps)
    else:
        yield "1 call", {}


def translated(pipeline: Pipeline, given: Tensor, options: dict[str, Any]) -> tuple[Tensor, float]:
    """The pictures made of given ones, as they are saved, and the milliseconds that one takes."""
    model, sampling, made = pipeline.model, pipeline.sampling(options), []
    start = time.perf_counter()
    for at in range(0, len(given), BATCH):
        rows = given[at : at + BATCH].contiguous(memory_format=torch.channels_last)
        draws = Draws(range(at, at + len(rows)))
        with torch.inference_mode():
            made.append(model.translate(rows, Condition(len(rows)), sampling, draws))  # type: ignore[operator]
    return as_saved(torch.cat(made)), 1e3 * (time.perf_counter() - start) / len(given)


def row(run: str, pipeline: Pipeline, setting: str, ms: float, n: int) -> dict[str, Cell]:
    """What every row says of a run."""
    header, family = pipeline.loaded.header, pipeline.loaded.run.family
    cost = {"ms": round(ms, 2), "seconds": round(header["seconds"]), "seen": header["seen"], "n": n}
    return {"run": Path(run).name, "family": family, "setting": setting, **cost}


def as_floats(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def sheet(folder: str, name: str, given: Tensor, made: Tensor, truth: Tensor, columns: int = 12) -> None:
    """The first pictures in three rows: given, made, wanted."""
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        rows = [with_channels(x[:columns], truth.shape[1]) for x in (given, made, truth)]
        save_grid(Path(folder) / f"{name}.png", torch.cat(rows), columns=columns)


def measure_shapes(runs: Sequence[str], n: int, steps: Sequence[int], sheets: str) -> list[dict[str, Cell]]:
    """A row a run, direction and number of steps."""
    scenes, rows = shapes.scenes(n, 0, held_out=True), []
    for run in runs:
        pipeline = Pipeline(run, "cpu")
        spec, data = pipeline.spec, pipeline.loaded.run.data
        filled, outlined = (
            shapes.draw(scenes, spec.height, spec.width, 0, style) for style in ("filled", "outlined")
        )
        first, second = (outlined, filled) if data.reverse else (filled, outlined)
        for name, options in settings(pipeline, steps, both=True):
            given, truth = (second, first) if name == "backward" else (first, second)
            made, ms = translated(pipeline, as_floats(given), options)
            found = shapes.compare(as_bytes(made), truth)
            shares = {key: [found[key], *wilson(found[key], n)] for key in ("exact", *MEASURED)}
            way = "to outlined" if truth is outlined else "to filled"
            quality = {"psnr": round(float(psnr(made, as_floats(truth)).mean()), 2), **shares}
            rows.append({**row(run, pipeline, f"{way}, {name}", ms, n), **quality})
            print(rows[-1], flush=True)
            sheet(sheets, f"{Path(run).name} {name}", as_floats(given), made, as_floats(truth))
    return rows


def held_out(pipeline: Pipeline, n: int) -> tuple[Tensor, Tensor]:
    """Given and wanted held-out pictures of the run's own data, up to ``n``."""
    run = pipeline.loaded.run
    held = open_like(list(run.sources), pipeline.spec, run.data, progress=False).split(run.data.holdout)[1]
    batch: Batch = held.batch(held.order(0, min(n, len(held)), 0))
    return given_pictures(pipeline.model, batch, Draws(range(len(batch.image)))), batch.image


def measure_colour(runs: Sequence[str], n: int, steps: Sequence[int], sheets: str) -> list[dict[str, Cell]]:
    """A row a run and number of steps: how far the grey of coloured images is from the given one, in 1/255."""
    rows = []
    for run in runs:
        pipeline = Pipeline(run, "cpu")
        given, truth = held_out(pipeline, n)
        for name, options in settings(pipeline, steps, both=False):
            made, ms = translated(pipeline, given, options)
            grey, wanted = with_channels(made[:, :3], 1), given[:, :1]
            off = 127.5 * float((grey - wanted).abs().max())
            base = truth.new_zeros(truth.shape) + with_channels(given, truth.shape[1])
            quality = {
                "off": round(off, 3), "psnr": round(float(psnr(made, truth).mean()), 2),
                "psnr_given": round(float(psnr(base, truth).mean()), 2),
            }  # fmt: skip
            rows.append({**row(run, pipeline, name, ms, len(truth)), **quality})
            print(rows[-1], flush=True)
            sheet(sheets, f"{Path(run).name} {name}", given, made, truth)
    return rows


def measure_pairs(runs: Sequence[str], n: int, steps: Sequence[int], sheets: str) -> list[dict[str, Cell]]:
    """A row a run and number of steps, on its own held-out pairs, beside the given picture as it is."""
    rows = []
    for run in runs:
        pipeline = Pipeline(run, "cpu")
        given, truth = held_out(pipeline, n)
        for name, options in settings(pipeline, steps, both=False):
            made, ms = translated(pipeline, given, options)
            base = with_channels(given, truth.shape[1])
            quality = {"psnr": round(float(psnr(made, truth).mean()), 2)}
            if base.shape == truth.shape:
                quality["psnr_given"] = round(float(psnr(base, truth).mean()), 2)
            rows.append({**row(run, pipeline, name, ms, len(truth)), **quality})
            print(rows[-1], flush=True)
            sheet(sheets, f"{Path(run).name} {name}", given, made, truth)
    return rows


RUN = {"run": "run", "family": "family", "setting": "direction and calls"}
COST = {"ms": "ms a picture", "seconds": "training, s", "seen": "images seen", "n": "n"}
TABLES = {
    "shapes": (
        measure_shapes,
        RUN | {"exact": "all right"} | {k: k for k in MEASURED} | {"psnr": "PSNR, dB"} | COST,
    ),
    "colour": (
        measure_colour,
        RUN
        | {"off": "grey off by, /255", "psnr": "PSNR, dB", "psnr_given": "PSNR of the grey picture, dB"}
        | COST,
    ),
    "pairs": (
        measure_pairs,
        RUN | {"psnr": "PSNR, dB", "psnr_given": "PSNR of the given picture, dB"} | COST,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--sheets", default="", help="folder for a picture of each row")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    measure, columns = TABLES[args.table]
    rows = measure(args.runs, args.n, args.steps, args.sheets)
    if args.record:
        record(f"translate-{args.table}", columns, rows, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
