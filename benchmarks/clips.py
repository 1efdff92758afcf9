"""How fast films are packed as clips, and that the memory it takes does not grow with the length of a film.

    python benchmarks/clips.py [--clips 1000] [--minutes 1 10] [--workers 2] [--record]

Makes films (H.264, 320x240, 30 frames a second) in a temporary folder: one of 16 frames for each clip, then
one of each length in minutes, and packs each at 32x32 and 16 frames, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from record import record

from limner.data import open_data
from limner.settings import DataOptions, need

HEIGHT, WIDTH, RATE, FRAMES = 240, 320, 30, 16
_DISTINCT = 50  # films that are encoded; the others are copies


def film(path: Path, frames: int, seed: int) -> None:
    """A blurred picture that pans by two pixels a frame, with grain."""
    av = need("av", "Films are written by PyAV, which is missing", "video")
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (15, 40, 3), dtype=np.uint8))
    wide = np.asarray(blobs.resize((2 * WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-6, 7, (8, HEIGHT, WIDTH, 3), dtype=np.int16)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "23"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for i in range(frames):
            at = abs((2 * i) % (2 * WIDTH) - WIDTH)
            pixels = np.clip(wide[:, at : at + WIDTH] + grain[i % 8], 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())


def films(folder: Path, count: int) -> None:
    for i in range(count):
        path = folder / f"{i:05d}.mp4"
        if i < _DISTINCT:
            film(path, FRAMES, i)
        else:
            shutil.copyfile(folder / f"{i % _DISTINCT:05d}.mp4", path)


def measure(source: Path, workers: int) -> dict[str, float]:
    """Seconds of packing, the clips, and MB of memory that packing added."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    need("av", "Films are read by PyAV, which is missing", "video")
    start = peak()
    with tempfile.TemporaryDirectory() as cache:
        options = DataOptions(cache=cache, frames=FRAMES)
        began = time.perf_counter()
        data = open_data(source, size=(32, 32), options=options, progress=False)
        return {"seconds": time.perf_counter() - began, "clips": len(data), "memory": peak() - start}


def peak() -> float:
    """MB of memory at the highest so far; `ru_maxrss` would begin with that of the process before `exec`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measured(source: Path, workers: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(source), "--workers", str(workers)]
    env = {**os.environ, "OMP_NUM_THREADS": str(workers)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/clips.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.workers)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        sources = {f"{args.clips:,} films of {FRAMES} frames": Path(scratch, "films")}
        sources[next(iter(sources))].mkdir()
        films(Path(scratch, "films"), args.clips)
        for minutes in args.minutes:
            name = f"a film of {minutes:g} minute{'s' * (minutes != 1)}"
            sources[name] = Path(scratch, f"{minutes:g}.mp4")
            film(sources[name], round(60 * RATE * minutes), 0)
        for name, source in sources.items():
            found = measured(source, args.workers)
            row = {
                "source": name, "clips": int(found["clips"]), "speed": round(found["clips"] / found["seconds"], 1),
                "memory": round(found["memory"]),
            }  # fmt: skip
            print("  " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    if args.record:
        columns = {"source": "packed", "clips": "clips", "speed": "clips/s", "memory": "memory added, MB"}
        note = f"H.264 of {WIDTH}x{HEIGHT}, {RATE} frames a second; clips of {FRAMES} frames at 32x32"
        record("clips", columns, rows, note=note)


if __name__ == "__main__":
    main()
