"""`limner compare`: several families on the same images, in one report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.commands import INTERRUPTED, say, table
from limner.commands.options import Sources, parse
from limner.settings import LimnerError


@dataclass(frozen=True)
class Options:
    """Train several families for the same time on the same images, measure them alike, and report.

    Arguments after a lone -- go to every training: -- --data.no-labels
    """

    sources: Sources  # folders, archives, parquet files or built-in sets
    families: str  # names, separated by commas
    budget: str = "5m"  # length of each training
    # folder for report.html, report.json and the runs; an unfinished comparison there is resumed
    to: str = "runs/compare"
    preset: str = ""  # tiny, small, base or paper. Default: small on a CPU, base on a GPU
    size: str = ""  # of the images: 32, or HEIGHTxWIDTH as in 64x48. Default: as for limner train
    n: int | None = None  # images to draw with each. Default: 1000, or the number of real images if lower
    features: str = "random"  # random, inception, clip, dinov2
    seed: int = 0  # of every training, and of the first image drawn
    json: bool = False  # print JSON


def run(argv: Sequence[str]) -> int:
    own, extra = list(argv), []
    if "--" in own:
        own, extra = own[: own.index("--")], own[own.index("--") + 1 :]
    given = parse(Options, own, "compare")
    if not given.sources:
        raise LimnerError("Name the images to train on: limner compare SOURCE --families flow,vae.")
    from limner.evaluation.compare import SHORT, advice, cells, compare, ranked

    names = [name.strip() for name in given.families.split(",") if name.strip()]
    rows = compare(
        given.sources, names, given.budget, given.to, given.preset, given.size, given.n, given.features,
        given.seed, extra,
    )  # fmt: skip
    if len(rows) < len(names):
        say("Stopped. Resume with the same command.")
        return INTERRUPTED
    if given.json:
        print((Path(given.to) / "report.json").read_text("utf-8"))
    else:
        shown = [cells(row) for row in ranked(rows) if "failed" not in row]
        table([*SHORT], [[row[at] for at in SHORT.values()] for row in shown])
        for row in rows:
            if "failed" in row:
                print(f"{row['family']} failed: {row['failed']}")
        say(f"{advice(rows)}\nLook at {Path(given.to) / 'report.html'}.")
    return 0 if any("kid" in row for row in rows) else 1
