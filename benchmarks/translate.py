"""What translation is worth where the truth is known: one function a table, each of runs that are there.

    limner train bridge pairs:shapes --size 32 --budget 15m --out runs/ink
    limner train bridge pairs:shapes --size 32 --budget 15m --data.reverse --out runs/ink-back
    limner train pix2pix pairs:shapes --size 32 --budget 15m --out runs/ink-pix2pix
    limner train cyclegan domains:shapes --size 32 --budget 30m --seed 0 --out runs/unpaired-0
    limner train bridge emoji --size 32 --budget 15m --model.degrade grey --out runs/colour
    python benchmarks/translate.py shapes runs/ink runs/ink-back runs/ink-pix2pix runs/unpaired-0 --record
    python benchmarks/translate.py colour runs/colour --record
    python benchmarks/translate.py pairs runs/emoji --sources test/google test/twitter --record

``shapes`` translates scenes whose combinations are in no training set, filled ones to outlined ones and back, as far
as a run learned either; the oracle reads the results in both styles. ``pairs`` measures the held-out pairs of any run
that has them, or those of ``--sources``, which a run of two domains takes both ways; ``colour`` also how far the grey
of coloured images is off. A run that draws in several calls is measured with each of ``--steps``. Shares and means have
their 95% interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
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
from limner.evaluation.translation import compare
from limner.inference.pipeline import Pipeline
from limner.losses.perceptual import default_network, network_title
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


def sheet(folder: str, name: str, rows: Sequence[Tensor], columns: int = 12) -> None:
    """The first pictures in rows: given, made, once or by several runs, and wanted."""
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        shown = [with_channels(x[:columns], rows[-1].shape[1]) for x in rows]
        save_grid(Path(folder) / f"{name}.png", torch.cat(shown), columns=columns)


def measure_shapes(args: argparse.Namespace) -> list[dict[str, Cell]]:
    """A row a run, direction and number of steps."""
    scenes, rows, n = shapes.scenes(args.n, 0, held_out=True), [], args.n
    for run in args.runs:
        pipeline = Pipeline(run, "cpu")
        spec, data = pipeline.spec, pipeline.loaded.run.data
        filled, outlined = (
            shapes.draw(scenes, spec.height, spec.width, 0, style) for style in ("filled", "outlined")
        )
        first, second = (outlined, filled) if data.reverse else (filled, outlined)
        for name, options in settings(pipeline, args.steps, both=True):
            given, truth = (second, first) if name == "backward" else (first, second)
            made, ms = translated(pipeline, as_floats(given), options)
            found = shapes.compare(as_bytes(made), truth)
            shares = {
                key: [round(x, 4) for x in (found[key], *wilson(found[key], n))]
                for key in ("exact", *MEASURED)
            }
            way = "to outlined" if truth is outlined else "to filled"
            quality = {"psnr": round(float(psnr(made, as_floats(truth)).mean()), 2), **shares}
            rows.append({**row(run, pipeline, f"{way}, {name}", ms, n), **quality})
            print(rows[-1], flush=True)
            sheet(args.sheets, f"{Path(run).name} {name}", [as_floats(given), made, as_floats(truth)])
    return rows


def held_out(pipeline: Pipeline, n: int, sources: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Given and wanted pictures, up to ``n``: held-out ones of the run's own data, or all pairs of other sources."""
    run = pipeline.loaded.run
    options = replace(run.data, given="pairs", holdout=0.0) if sources else run.data
    opened = open_like(list(sources) or list(run.sources), pipeline.spec, options, progress=False)
    data = opened if sources else opened.split(run.data.holdout)[1]
    batch: Batch = data.batch(data.order(0, min(n, len(data)), 0))
    return given_pictures(pipeline.model, batch, Draws(range(len(batch.image)))), batch.image


def measure_pairs(args: argparse.Namespace) -> list[dict[str, Cell]]:
    """A row a run, direction and number of steps: pairs, beside the given picture as it is; and their grey."""
    rows, together = [], dict[str, Tensor]()
    for run in args.runs:
        pipeline = Pipeline(run, "cpu")
        first, second = held_out(pipeline, args.n, args.sources)
        for name, options in settings(pipeline, args.steps, both=bool(args.sources)):
            given, truth = (second, first) if name == "backward" else (first, second)
            made, ms = translated(pipeline, given, options)
            base = as_saved(with_channels(given, truth.shape[1]))
            quality: dict[str, Cell] = {}
            if given.shape[1] == 1:
                quality["off"] = round(127.5 * float((with_channels(made[:, :3], 1) - given).abs().max()), 3)
            for beside, pictures in (("", made), ("_given", base)):
                found = compare(pictures, truth, 1, default_network())
                for key in ("psnr", "psnr_alpha", "perceptual"):
                    if (figure := getattr(found, key)) is not None:
                        quality[key + beside] = [round(x, 3) for x in (figure.value, figure.low, figure.high)]
            rows.append({**row(run, pipeline, name, ms, len(truth)), **quality})
            print(rows[-1], flush=True)
            sheet(args.sheets, f"{Path(run).name} {name}", [given, made, truth])
            if name != "backward" and Path(run).name not in together:
                together[Path(run).name] = made
    if args.sources:
        sheet(args.sheets, "together", [first, *together.values(), second])
    return rows


RUN = {"run": "run", "family": "family", "setting": "direction and calls"}
COST = {"ms": "ms a picture", "seconds": "training, s", "seen": "images seen", "n": "n"}
NEAR = {
    "psnr": "PSNR, dB", "psnr_given": "of the given picture, dB", "psnr_alpha": "of alpha, dB",
    "perceptual": "perceptual distance", "perceptual_given": "of the given picture",
}  # fmt: skip
TABLES = {
    "shapes": (
        measure_shapes,
        RUN | {"exact": "all right"} | {k: k for k in MEASURED} | {"psnr": "PSNR, dB"} | COST,
    ),
    "colour": (measure_pairs, RUN | {"off": "grey off by, /255"} | NEAR | COST),
    "pairs": (measure_pairs, RUN | NEAR | COST),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--sources", nargs=2, default=[], help="pairs: folders of given and of wanted pictures"
    )
    parser.add_argument("--sheets", default="", help="folder for a picture of each row")
    parser.add_argument(
        "--record", nargs="?", const="", help="write benchmarks/results/translate-TABLE or NAME.json"
    )
    args = parser.parse_args()
    measure, columns = TABLES[args.table]
    rows = measure(args)
    if args.record is not None:
        name = args.record or f"translate-{args.table}"
        note = "" if args.table == "shapes" else f"perceptual: {network_title(default_network())}"
        record(name, columns, rows, note, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
