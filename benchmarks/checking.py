"""How many images a second does `limner data check` read, and in how much memory? Beside another checkout in turns.

    git worktree add ../before COMMIT
    python benchmarks/checking.py --images 20000 --against ../before --record

Makes small pictures of blobs and grain, JPEGs and PNGs of mixed sizes in ten folders, and checks them in a fresh
process each time: all of them, and a tenth, which shows how memory grows with their number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from record import record

ROOT = Path(__file__).parents[1]
COLUMNS = {"speed": "images/s", "busy": "images/s of processor time", "memory": "peak MiB"}
WORKER = """
import sys, time
from limner.data import check
started, busy = time.perf_counter(), time.process_time()
report = check(sys.argv[1], progress=False)
passed, busy = time.perf_counter() - started, time.process_time() - busy
assert not report.problems and report.images
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(report.images / passed, report.images / busy, int(peak) / 1024)
"""


def pictures(folder: Path, count: int) -> None:
    """Every fourth is a PNG; sides of 48 to 160 pixels."""
    rng = np.random.default_rng(0)
    for i in range(count):
        width, height = (int(side) for side in rng.integers(48, 161, 2))
        blobs = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-8, 9, smooth.shape, dtype=np.int16)
        picture = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        place = folder / f"class {i % 10}"
        place.mkdir(parents=True, exist_ok=True)
        if i % 4:
            picture.save(place / f"{i:05d}.jpg", quality=88)
        else:
            picture.save(place / f"{i:05d}.png", compress_level=4)


def measured(checkout: Path, folder: Path) -> tuple[float, float, float]:
    """Images/s, images per second of processor time, and peak memory in MiB of a check in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", WORKER, str(folder)]
    run = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    speed, busy, memory = map(float, run.stdout.split())
    return speed, busy, memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--against", type=Path, help="another checkout, timed in turns with this one")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/checking.json")
    given = parser.parse_args()
    sides = {"this checkout": ROOT} | ({"before": given.against.resolve()} if given.against else {})
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in (given.images // 10, given.images):
            folder = Path(scratch, str(count))
            pictures(folder, count)
            found: dict[str, list[tuple[float, float, float]]] = {side: [] for side in sides}
            for i in range(given.pairs):
                for side in list(sides)[:: 1 if i % 2 else -1]:
                    found[side].append(measured(sides[side], folder))
            for side, figures in found.items():
                middle = [round(statistics.median(column)) for column in zip(*figures, strict=True)]
                rows.append({"images": count, "side": side, **dict(zip(COLUMNS, middle, strict=True))})
                speed, busy, memory = middle
                what = f"{speed:,} images/s, {busy:,} a second of processor time, peak {memory:,} MiB"
                print(f"{count:>7,} images, {side:<14}{what}", flush=True)
            if given.against:
                pairs = zip(found["this checkout"], found["before"], strict=True)
                ratios = [
                    this[1] / other[1] for this, other in pairs
                ]  # other work on the machine disturbs it less
                ratio = [round(f(ratios), 3) for f in (statistics.median, min, max)]
                rows[-2] |= {"ratio": ratio, "wall": round(rows[-2]["speed"] / rows[-1]["speed"], 3)}
                print(f"        {ratio[0]:.2f}x of before ({ratio[1]:.2f} to {ratio[2]:.2f})", flush=True)
    if given.record:
        columns = {
            "images": "images",
            "side": "side",
            **COLUMNS,
            "ratio": "of before, by processor time",
            "wall": "of before, by wall clock",
        }
        note = f"limner data check of JPEGs and PNGs of 48 to 160 pixels a side, {given.pairs} pairs of processes"
        print(f"Written: {record('checking', columns, rows, note)}")


if __name__ == "__main__":
    main()
