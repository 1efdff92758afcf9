"""Several families on real folders of images: trained for the same time, measured alike, in one table and one sheet.

    python benchmarks/real.py fashion=pics/fashion sprites=pics/sprites --families flow,edm,dit --budget 20m --record
    python benchmarks/real.py landscapes=pics/landscapes@64x128 --families flow --to runs/real-before --record before
    python benchmarks/real.py digits=digits --families flow:120kimg,drifting:300kimg --threads 1

Each family is measured by ``limner compare`` in TO/NAME/FAMILY, so that an interrupted run goes on where it was, and
several processes may share the work; a size may follow the folder after an @, and a budget of its own the family
after a colon: the images that a quiet machine sees in the same time, where this one is busy. Options after a lone --
go to every training. The table has the figures in each space of features with what real images score in the place of
the drawn ones; TO/NAME.png has the top of each family's sheet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from record import record

from limner.evaluation.compare import compare
from limner.evaluation.options import CompareOptions
from limner.evaluation.results import FeatureFigures, Row

COLUMNS = {
    "data": "images", "size": "size", "family": "family", "features": "features", "frechet": "Frechet distance (95%)",
    "frechet_floor": "its floor", "kid": "kernel distance (95%)", "kid_floor": "its floor", "precision": "precision",
    "recall": "recall", "coverage": "coverage", "coverage_floor": "its floor", "copies": "near copies",
    "copies_usual": "of new images", "collapsed": "collapsed", "n": "n", "seen": "images seen", "seconds": "seconds",
    "parameters": "parameters", "ms": "ms to draw", "peak": "peak memory, MB",
}  # fmt: skip

SHOWN = "data", "family", "features", "frechet", "coverage"


def rows_of(data: str, size: str, row: Row) -> list[dict[str, Any]]:
    """A row for each space of features."""
    about: dict[str, Any] = {"data": data, "size": size, "family": row.family}
    if not row.fidelity or not row.cost:
        return [about | {"collapsed": f"failed: {row.failed}"}]
    fidelity, cost = row.fidelity, row.cost
    about |= {
        "collapsed": fidelity.collapsed, "seen": cost.seen, "seconds": round(cost.seconds), "n": fidelity.n,
        "parameters": cost.parameters, "ms": round(cost.sampling_ms, 2), "peak": (row.peak_memory or 0) // 10**6,
    }  # fmt: skip
    if copies := fidelity.copies:
        about |= {"copies": round(copies.value, 4), "copies_usual": round(copies.expected, 4)}
    spaces: list[FeatureFigures] = [fidelity, *fidelity.other_features.values()]
    return [about | figures_in(space) for space in spaces]


def figures_in(space: FeatureFigures) -> dict[str, Any]:
    """Distances with their intervals and floors, and shares, as cells of a row."""
    found: dict[str, Any] = {"features": space.features}
    for name in ("frechet", "kid"):
        figure = getattr(space, name)
        found |= {
            name: [round(x, 4) for x in (figure.value, figure.low, figure.high)],
            f"{name}_floor": round(figure.floor, 4),
        }
    for name in ("precision", "recall", "coverage"):
        found[name] = round(getattr(space, name).value, 4)
    return found | {"coverage_floor": round(space.coverage.floor, 4)}


def sheet(folder: Path, families: Sequence[str], to: Path) -> None:
    """The top quarter of each family's sheet, one below the other, in the order of the families."""
    strips = []
    for family in families:
        if (path := folder / family / family / "drawn.png").exists():
            with Image.open(path) as image:
                strips.append(image.convert("RGB").crop((0, 0, image.width, image.height // 4)))
    if strips:
        whole = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
        top = 0
        for strip in strips:
            whole.paste(strip, (0, top))
            top += strip.height
        whole.save(to)


def compared(
    name: str, source: str, given: argparse.Namespace, extra: Sequence[str]
) -> tuple[list[dict[str, Any]], bool]:
    """The rows of all families on a folder of images, and whether a signal stopped that."""
    source, _, size = source.partition("@")
    rows, families = list[dict[str, Any]](), list[str]()
    for each in given.families.split(","):
        family, _, budget = each.partition(":")
        families.append(family)
        options = CompareOptions(
            budget=budget or given.budget, preset=given.preset, size=size, n=given.n, seed=given.seed
        )
        threads = ["--training.threads", str(given.threads), *extra]
        result = compare([source], [family], given.to / name / family, options, threads)
        for row in result.rows:
            rows += (found := rows_of(name, size, row))
            for figures in found:
                print({key: figures[key] for key in SHOWN if key in figures}, flush=True)
        if result.stopped:
            return rows, True
    sheet(given.to / name, families, given.to / f"{name}.png")
    return rows, False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER[@SIZE]")
    parser.add_argument("--families", default="flow,edm,dit,latent,stylegan2,r3gan,drifting")
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--to", type=Path, default=Path("runs/real"))
    parser.add_argument("--record", nargs="?", const="real", help="name of the file of results")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    given, extra = parser.parse_args(words[:end]), words[end + 1 :]
    torch.set_num_threads(given.threads)
    rows = list[dict[str, Any]]()
    for folder in given.folders:
        name, _, source = folder.partition("=")
        found, stopped = compared(name, source, given, extra)
        rows += found
        if stopped:
            break
    if given.record:
        record(given.record, COLUMNS, rows, threads=given.threads)


if __name__ == "__main__":
    main()
