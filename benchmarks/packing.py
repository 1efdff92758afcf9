"""How fast a folder of photographs is packed, opened again, and read in batches, and the memory that it takes.

    python benchmarks/packing.py [--images 5000] [--workers 1 2] [--against PATH] [--rounds 5]

Makes JPEGs of 640x480 in a temporary folder, packs them at 32x32 with each number of workers, each time
into an empty cache and in a process of its own, then reads batches of 64. With --against, the code of another
checkout does the same in turn, and the medians of the ratios (this code's figure to the other's) are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import record

from limner.data import open_data
from limner.settings import DataOptions


def photographs(folder: Path, count: int) -> None:
    """JPEGs of blurred noise with grain: about 80 kB each, as photographs of that size have."""
    rng = np.random.default_rng(0)
    for i in range(count):
        blobs = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        smooth = np.asarray(blobs.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-10, 11, smooth.shape, dtype=np.int16)
        picture = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        picture.save(folder / f"{i:05d}.jpg", quality=85)


def measure(folder: Path, workers: int) -> dict[str, float]:
    """Figures of the code that is imported: images/s, seconds, batches/s, MB of memory that packing added."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    images, start = len(list(folder.iterdir())), peak()
    with tempfile.TemporaryDirectory() as cache:
        options = DataOptions(cache=cache)
        began = time.perf_counter()
        open_data(folder, size=(32, 32), options=options, progress=False)
        packing, added = time.perf_counter() - began, peak() - start
        began = time.perf_counter()
        data = open_data(folder, size=(32, 32), options=options, progress=False)
        opening, times = time.perf_counter() - began, []
        for step in range(500):
            order = data.order(64 * step, 64, seed=0)
            began = time.perf_counter()
            data.batch(order)
            times.append(time.perf_counter() - began)
    return {
        "packing": images / packing, "opening again": opening, "batches of 64": 1 / float(np.median(times)),
        "memory": added,
    }  # fmt: skip


UNITS = {"packing": "images/s", "opening again": "s", "batches of 64": "batches/s", "memory": "MB"}


def peak() -> float:
    """MB of memory at the highest so far; `ru_maxrss` would begin with that of the process before `exec`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measured(code: Path, folder: Path, workers: int) -> dict[str, float]:
    """`measure` with the code of a checkout, in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(folder), "--workers", str(workers)]
    env = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": str(workers)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def compare(folder: Path, workers: int, codes: list[Path], rounds: int) -> list[dict[str, Any]]:
    """A row for each figure: its median, and the median of the ratios to the code beside."""
    found: list[list[dict[str, float]]] = []
    for i in range(rounds):  # in turn, so that a machine that slows down slows both
        order = codes if i % 2 else codes[::-1]
        by_code = {code: measured(code, folder, workers) for code in order}
        found.append([by_code[code] for code in codes])
    rows = []
    for name, unit in UNITS.items():
        values = np.array([[figures[name] for figures in each] for each in found])
        row: dict[str, Any] = {"figure": f"{name}, workers: {workers}", "unit": unit}
        row["value"] = float(f"{np.median(values[:, 0]):.3g}")
        if len(codes) > 1:
            row["before"] = float(f"{np.median(values[:, 1]):.3g}")
            ratios = values[:, 0] / np.maximum(values[:, 1], 1e-9)
            row["ratio"] = round(float(np.median(ratios)), 3)
        print("  " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--against", type=Path, help="a checkout of other code, to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/packing.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.workers[0])))
        return
    codes = [Path(__file__).parents[1], *([args.against] if args.against else [])]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photographs")
        folder.mkdir()
        photographs(folder, args.images)
        size = sum(p.stat().st_size for p in folder.iterdir()) / args.images
        print(f"{args.images:,} JPEGs of 640x480, {size / 1000:.0f} kB each, on {os.cpu_count()} cores")
        rows = [row for workers in args.workers for row in compare(folder, workers, codes, args.rounds)]
    if args.record:
        columns = {"figure": "figure", "value": "measured", "unit": "unit"}
        if args.against:
            columns |= {"before": "before", "ratio": "ratio"}
        record("packing", columns, rows, note=f"{args.images:,} JPEGs of 640x480")


if __name__ == "__main__":
    main()
