"""How fast a folder of photographs is packed, and a batch read.

    python benchmarks/packing.py [--images 5000] [--workers 1 2]

Makes JPEGs of 640x480 in a temporary folder, packs them at 32x32 with each number of workers, each time
into an empty cache, then reads batches of 64.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from record import record

from limner.data import open_data, parallel
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, parallel.cores()])
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/packing.json")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photographs")
        folder.mkdir()
        photographs(folder, args.images)
        size = sum(p.stat().st_size for p in folder.iterdir()) / args.images
        print(f"{args.images:,} JPEGs of 640x480, {size / 1000:.0f} kB each, on {os.cpu_count()} cores")
        for workers in args.workers:
            parallel.cores = partial(int, workers)
            options = DataOptions(cache=f"{scratch}/cache{workers}")
            started, used = time.perf_counter(), time.process_time()
            data = open_data(folder, size=(32, 32), options=options, progress=False)
            passed, used = time.perf_counter() - started, time.process_time() - used
            print(
                f"  {workers} workers: {args.images / passed:,.0f} images/s, {used / passed:.2f} cores busy"
            )
            figure = f"packing {args.images:,} JPEGs of 640x480, workers: {workers}"
            rows.append({"figure": figure, "value": round(args.images / passed), "unit": "images/s"})
        started = time.perf_counter()
        open_data(folder, size=(32, 32), options=options, progress=False)
        print(f"  opened again: {time.perf_counter() - started:.3f} s")

        times = []
        for step in range(500):
            started = time.perf_counter()
            data.batch(data.order(64 * step, 64, seed=0))
            times.append(time.perf_counter() - started)
        print(f"  a batch of 64 at 3x32x32: {np.median(times) * 1e6:.0f} us")
    rows.append(
        {"figure": "reading a batch of 64", "value": round(float(np.median(times)) * 1e6), "unit": "us"}
    )
    if args.record:
        record("packing", {"figure": "figure", "value": "measured", "unit": "unit"}, rows)


if __name__ == "__main__":
    main()
