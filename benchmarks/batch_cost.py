"""What share of a training step goes into reading its batch?

    python benchmarks/batch_cost.py shapes

Choosing the images, copying them out of the memory map and scaling them, as a share of the whole step of
flow's small preset on the same data. Should stay under 2%.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from peers import Limner, machine
from record import record

import limner
from limner.core import LimnerError


def median_seconds(act: Callable[[int], object], times: int) -> float:
    """Of one call; the first is not counted."""
    taken = []
    for i in range(times + 1):
        start = time.perf_counter()
        act(i)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", default="shapes", help="what to read")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--json", action="store_true", help="for programs to read")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/batch_cost.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    data = limner.open_data(args.source, size=(args.size, args.size))
    contestant = Limner(data, preset=args.preset)
    batch = contestant.batch
    read = median_seconds(lambda i: data.batch(data.order(i * batch, batch, seed=0)), 20 * args.steps)
    step = median_seconds(lambda i: contestant.step(0.5), args.steps)
    figures = {"batch": batch, "read_ms": 1e3 * read, "step_ms": 1e3 * step, "share": read / step}
    if args.record:
        row = {
            "figure": "reading a batch, share of a training step",
            "value": round(100 * read / step, 3),
            "unit": "%",
        }
        record(
            "batch_cost",
            {"figure": "figure", "value": "measured", "unit": "unit"},
            [row],
            threads=args.threads,
        )
    if args.json:
        print(json.dumps(figures | machine(args.threads)))
    else:
        print(
            f"{figures['read_ms']:.2f} ms of a {figures['step_ms']:.0f} ms step on {batch} images: {read / step:.2%}"
        )


if __name__ == "__main__":
    try:
        main()
    except LimnerError as error:
        sys.exit(f"batch_cost: {error}")
