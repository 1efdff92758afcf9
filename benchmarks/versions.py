"""Is this checkout as fast as another one, an earlier commit for instance? Two processes, slices in turns.

    git worktree add ../before COMMIT
    python benchmarks/versions.py ../before --families flow,dcgan --record

For each family: images/s in training, and in drawing with a label and with a text where it follows them, so with
guidance where it has any; the ratio is this checkout's over the other's, the median of the pairs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from record import record

ROOT = Path(__file__).parents[1]
# Runs in benchmarks/ of either checkout, so it uses only what both have: cost.py's acts on peers.py's Limner.
WORKER = """
import dataclasses, sys
import numpy as np, torch
import cost
from pairs import noise_data, rate
from peers import Limner
from limner.core import Condition

def data_of(kind):
    data = noise_data()
    if kind == "label":
        spec = dataclasses.replace(data.spec, classes=("a", "b", "c", "d"))
        return dataclasses.replace(data, spec=spec, labels=np.arange(len(data)) % 4)
    if kind == "text":
        spec = dataclasses.replace(data.spec, captions=True)
        return dataclasses.replace(data, spec=spec, captions=["a small red cat on a mat"] * len(data))
    return data

def condition(kind, n):
    if kind == "label":
        return Condition(n, label=torch.arange(n) % 4)
    return Condition(n, text=["a small red cat on a mat"] * n) if kind == "text" else Condition(n)

acts = {}
for line in sys.stdin:
    family, what, kind, batch, seconds = line.split()
    key = family, what, kind, batch
    if key not in acts:
        side = Limner(data_of(kind), name=family)
        side.loop.seen = cost.GROWN
        side.loop.model.advance(cost.GROWN)
        cost.Condition = lambda n, kind=kind: condition(kind, n)
        torch.set_num_threads(1)
        act = cost.trainer(side) if what == "train" else cost.drawer(side, int(batch))
        act()
        acts[key] = act
    cost.Condition = lambda n, kind=kind: condition(kind, n)
    print(rate(acts[key], float(seconds)), flush=True)
"""


class Side:
    """A process that runs the code of one checkout."""

    def __init__(self, checkout: Path):
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WORKER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(
            command, cwd=checkout / "benchmarks", env=environment, text=True, **pipes
        )

    def rate(self, *words: object) -> float:
        """Images/s of a slice; the first call of its kind also builds what it needs."""
        assert self.process.stdin and self.process.stdout
        print(*words, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"the process of {self.process.args} ended")
        return float(answer)


def paired(sides: tuple[Side, Side], words: tuple[object, ...], seconds: float, pairs: int) -> list[float]:
    """[median, smallest, largest] of the rates' ratio, the first side's over the second's."""
    for side in sides:
        side.rate(*words, 0.0)
    ratios = []
    for i in range(pairs):
        order = sides if i % 2 else sides[::-1]
        rates = {side: side.rate(*words, seconds) for side in order}
        ratios.append(rates[sides[0]] / rates[sides[1]])
    return [round(f(ratios), 3) for f in (statistics.median, min, max)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--families", default="flow,dit,ddpm,edm,latent,dcgan,stylegan2,vae,vit")
    parser.add_argument("--conditions", default="none", help="for drawing: none, label, text")
    parser.add_argument("--batches", default="64", help="images drawn at once")
    parser.add_argument("--no-training", action="store_true", help="time drawing alone")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a slice")
    parser.add_argument("--record", default="", help="write benchmarks/results/NAME.json")
    given = parser.parse_args()
    sides = Side(ROOT), Side(given.other.resolve())
    from limner import families

    rows = []
    for family in given.families.split(","):
        draws = hasattr(families.load(family), "sample")
        kind = "none" if draws else "label"  # what classifies needs classes to train on
        jobs: list[tuple[str, str, str]] = [] if given.no_training else [("train", kind, "0")]
        if draws:
            reads = families.load(family).reads
            kinds = [k for k in given.conditions.split(",") if k == "none" or k in reads]
            jobs += [("draw", kind, batch) for kind in kinds for batch in given.batches.split(",")]
        for what, kind, batch in jobs:
            ratio = paired(sides, (family, what, kind, batch), given.seconds, given.pairs)
            row = {
                "family": family,
                "what": what,
                "condition": kind,
                "batch": int(batch) or None,
                "ratio": ratio,
            }
            rows.append(row)
            middle, low, high = ratio
            print(
                f"{family:<12}{what:<7}{kind:<7}{batch:>4}  {middle:.3f}x ({low:.3f} to {high:.3f})",
                flush=True,
            )
    if given.record:
        columns = {name: name for name in ("family", "what", "condition", "batch")} | {
            "ratio": "speed relative to before"
        }
        note = f"small presets, 3x32x32, random pixels, {given.pairs} pairs of {given.seconds:g} s slices"
        print(f"Written: {record(given.record, columns, rows, note, threads=1)}")


if __name__ == "__main__":
    main()
