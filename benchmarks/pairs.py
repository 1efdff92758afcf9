"""Two sides timed in turns, a slice of the one and a slice of the other: what both speed benchmarks do."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import LIBRARIES, Contestant, Limner, as_tensor, available, machine
from record import record

from limner.core import ImageSpec
from limner.data import Data


def noise_data(side: int = 32, channels: int = 3, n: int = 512) -> Data:
    """Data of random pixels, for timing: what the pixels are makes no difference."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8)
    spec = ImageSpec(channels, side, side)
    return Data(spec, "noise", pixels, np.arange(n), [f"noise/{i}" for i in range(n)])


def rate(act: Callable[[], int], seconds: float) -> float:
    """Images a second of an act that tells how many it did, repeated for at least so long."""
    images, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or not images:
        images += act()
    return images / passed


def alternate(
    ours: Callable[[], int], theirs: Callable[[], int], seconds: float, pairs: int
) -> list[tuple[float, float]]:
    """Images a second of both, measured in turns so that what else the machine does meets both alike."""
    ours(), theirs()  # not measured: the first call allocates and chooses kernels
    measured = []
    for i in range(pairs):
        if i % 2:
            their_rate, our_rate = rate(theirs, seconds), rate(ours, seconds)
        else:
            our_rate, their_rate = rate(ours, seconds), rate(theirs, seconds)
        measured.append((our_rate, their_rate))
    return measured


def summary(measured: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Medians of both rates and of each pair's ratio, with the smallest and the largest ratio."""
    ratios = [ours / theirs for ours, theirs in measured]
    return {
        "limner_images_per_second": statistics.median(ours for ours, _ in measured),
        "peer_images_per_second": statistics.median(theirs for _, theirs in measured),
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "pairs": len(measured),
    }


def compare(act: Callable[[Contestant], int], about: str | None) -> None:
    """The command line of a speed benchmark: ``act`` does a part of the work and tells how many images."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images at a time, for everybody")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="a slice of either side lasts at least so long"
    )
    parser.add_argument("--pairs", type=int, default=7, help="slices of either side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="small", help="of Limner's flow")
    parser.add_argument("--channels-last", action="store_true", help="also the libraries in channels_last")
    parser.add_argument("--json", action="store_true", help="for programs to read")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/SCRIPT.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = noise_data()
    ours = Limner(data, args.batch, args.preset)
    figures: dict[str, Any] = {
        "batch": args.batch,
        "limner_parameters": ours.parameters,
        **machine(args.threads),
    }
    figures["against"] = rows = {}
    libraries = available(LIBRARIES)
    if not libraries:
        act(ours)
        figures["limner_images_per_second"] = speed = rate(lambda: act(ours), args.seconds)
        print(f"limner alone: {speed:.2f} images/s", file=sys.stderr)
    for kind, channels_last in itertools.product(
        libraries, (False, True) if args.channels_last else (False,)
    ):
        theirs = kind(as_tensor(data), ours.parameters, args.batch, channels_last)
        measured = alternate(partial(act, ours), partial(act, theirs), args.seconds, args.pairs)
        name = theirs.name + (", channels_last" if channels_last else "")
        row = rows[name] = {"parameters": theirs.parameters, **summary(measured)}
        print(
            f"{row['ratio']:6.2f}x  ({row['ratio_least']:.2f} to {row['ratio_most']:.2f} in {args.pairs} pairs)  "
            f"limner {row['limner_images_per_second']:.2f} images/s at {ours.parameters / 1e6:.2f}M parameters, "
            f"{name} {row['peer_images_per_second']:.2f} at {theirs.parameters / 1e6:.2f}M",
            file=sys.stderr,
            flush=True,
        )
    if args.record:
        keep(figures, args)
    if args.json:
        print(json.dumps(figures))


def keep(figures: dict[str, Any], args: argparse.Namespace) -> None:
    """One row a library in benchmarks/results/, by the name of the script that runs."""
    columns = {
        "batch": "batch", "peer": "beside", "ratio": "times as many images/s", "limner": "Limner, images/s",
        "theirs": "peer, images/s",
    }  # fmt: skip
    rows = [
        {
            "batch": figures["batch"], "peer": name,
            "ratio": [round(row[k], 2) for k in ("ratio", "ratio_least", "ratio_most")],
            "limner": round(row["limner_images_per_second"], 1), "theirs": round(row["peer_images_per_second"], 1),
        }
        for name, row in figures["against"].items()
    ]  # fmt: skip
    size = f"3x32x32, {figures['limner_parameters']:,} parameters within 3%"
    note = f"{size}, median of {args.pairs} pairs, smallest to largest"
    record(Path(sys.argv[0]).stem, columns, rows, note, args.threads)
