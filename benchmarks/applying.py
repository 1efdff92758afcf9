"""`limner apply`: memory and seams of large pictures, what kills leave, and where the time goes.

    python benchmarks/applying.py large runs/up runs/ink runs/paint --record      # 4000x3000 within 1 GB
    python benchmarks/applying.py tiles runs/up runs/ink runs/paint --record      # 640x427 in tiles and whole
    python benchmarks/applying.py kills runs/up --record                          # 500 pictures, killed at random
    python benchmarks/applying.py share runs/up --record                          # time in the network at 256x256

``large`` gives a run of scale s a picture of 4000/s x 3000/s pixels. ``tiles`` cuts china.jpg of scikit-learn; where a
network has norms over the picture, with the statistics of the whole picture and with those of a thumbnail of 256
pixels: the seams are the largest mean jump of the error across a border of tiles, over that across lines beside it.
``kills`` sends SIGKILL after random times and calls again, until the folder is whole.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import peak
from PIL import Image
from record import record

from limner.inference.apply import apply
from limner.inference.pipeline import Pipeline
from limner.inference.tile_plan import plan
from limner.inference.tiles import Translator, thumbnail
from limner.networks.images.padding import padded_side
from limner.networks.instance import picture_norms

SIDE, THUMBNAIL = 256, 256  # pixels a side of small pictures, and of the thumbnail that gives statistics
BESIDE = 8  # lines on either side of a border that its jump is compared with
PIECE = 224  # pixels a side of a tile with its margins, at least


def photograph() -> np.ndarray:
    """uint8 [427, 640, 3]"""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg")


def opened(run: str) -> tuple[str, Translator]:
    """What a row calls a run, and the run with unlimited memory."""
    pipeline = Pipeline(run, "cpu")
    translator = Translator(pipeline.model.eval(), pipeline.sampling({}), 10**12)
    return f"{pipeline.loaded.run.family} ({pipeline.loaded.run.preset}), {Path(run).name}", translator


def as_taken(pixels: np.ndarray, translator: Translator) -> np.ndarray:
    """[H, W, 3] with the channels that a run takes."""
    if translator.channels == 1:
        return pixels.mean(-1, keepdims=True).round().astype(np.uint8)
    opaque = np.full_like(pixels[..., :1], 255)
    return np.concatenate([pixels, opaque], -1) if translator.channels == 4 else pixels


def measure_large(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for run in given.runs:
        name, translator = opened(run)
        scale = translator.network.scale
        with tempfile.TemporaryDirectory() as folder:
            large = Image.fromarray(photograph()).resize((4000 // scale, 3000 // scale))
            large.save(source := Path(folder) / "large.png")
            start = time.perf_counter()
            mb = peak("apply", run, str(source), "--to", f"{folder}/made.png", "--memory", given.memory)
            seconds = time.perf_counter() - start
            width, height = Image.open(f"{folder}/made.png").size
        row = {
            "run": name,
            "given": f"{4000 // scale}x{3000 // scale}",
            "made": f"{width}x{height}",
            "mb": mb,
        }
        rows.append(row | {"seconds": round(seconds, 1)})
        print(rows[-1], flush=True)
    return rows


def seams(error: np.ndarray, borders: Sequence[set[int]]) -> float:
    """Of an error [H, W]: the largest mean jump across a border (down, across), over that of the lines beside it."""
    found = []
    for axis, places in enumerate(borders):
        steps = np.abs(np.diff(error, axis=axis)).mean(1 - axis)  # [H - 1] or [W - 1]
        for place in places:
            near = [*range(max(0, place - 1 - BESIDE), place - 1), *range(place, place + BESIDE)]
            found.append(steps[place - 1] / steps[[i for i in near if i < len(steps)]].mean())
    return float(max(found))


def decibels(error: np.ndarray) -> float:
    mean = float(np.square(error).mean())
    return float(10 * np.log10(255**2 / mean)) if mean else float("inf")


def measure_tiles(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for run in given.runs:
        name, translator = opened(run)
        network, pixels = translator.network, as_taken(photograph(), translator)
        untiled = translator(pixels).astype(float)
        height, width = (padded_side(side, network.factor, network.least) for side in pixels.shape[:2])
        margin = network.margin(translator.sampling)
        if margin is None:
            rows.append({"run": name, "statistics": "it sees the whole picture: never tiled"})
            continue
        parts = plan(height, width, network.factor, margin, max(PIECE, 4 * margin) ** 2)
        borders = [{network.scale * tile[axis].start for tile in parts} - {0} for axis in (0, 1)]
        norms = bool(picture_norms(translator.model))
        small = thumbnail(pixels, THUMBNAIL**2, network.factor)
        sources = {"the whole picture's": pixels, "a thumbnail's": small, "each tile's own": None}
        for title, source in (sources if norms else {"none": None}).items():
            with translator.statistics_of(source) if source is not None else nullcontext():
                made = translator.in_tiles(pixels, parts)
            error = np.abs(made - untiled)
            row: dict[str, Any] = {
                "run": name,
                "statistics": title,
                "tiles": len(parts),
                "off": int(error.max()),
            }
            if error.max() > 1:
                row |= {"psnr": round(decibels(error), 2), "seams": round(seams(error.mean(-1), borders), 2)}
            rows.append(row)
            print(row, flush=True)
    return rows


def small_pictures(folder: Path, count: int, side: int) -> Path:
    """Crops of a photograph."""
    pixels, rng = photograph(), np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        down, across = (rng.integers(0, length - side + 1) for length in pixels.shape[:2])
        Image.fromarray(pixels[down : down + side, across : across + side]).save(folder / f"{i:03d}.png")
    return folder


def measure_kills(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Each result is written once: its time of writing stays as it was after the call that made it."""
    rng, rows = random.Random(0), []
    for run in given.runs:
        name, _ = opened(run)
        with tempfile.TemporaryDirectory() as temporary:
            source, to = small_pictures(Path(temporary) / "in", given.n, 32), Path(temporary) / "out"
            written: dict[str, int] = {}
            killed = calls = broken = twice = 0
            while True:
                words = [sys.executable, "-m", "limner.cli", "apply", run, str(source), "--to", str(to)]
                process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                calls += 1
                try:
                    code = process.wait(rng.uniform(2.0, 6.0) if killed < given.kills else None)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code, killed = process.wait(), killed + 1
                for path in sorted(to.glob("*.png")) if to.exists() else []:
                    twice += written.setdefault(path.name, path.stat().st_mtime_ns) != path.stat().st_mtime_ns
                    broken += not is_whole(path)
                if code == 0:
                    break
            row = {"run": name, "calls": calls, "kills": killed, "pictures": len(written), "broken": broken}
            rows.append(row | {"twice": twice})
            print(rows[-1], flush=True)
    return rows


def is_whole(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            picture.load()
    except OSError:
        return False
    return True


def measure_share(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Processor time of `apply` on pictures of 256x256, and of the network's calls alone in it."""
    rows = []
    for run in given.runs:
        name, translator = opened(run)
        inside = 0.0
        original = type(translator.network).translate

        def timed(self: Any, *args: Any, original: Any = original) -> torch.Tensor:
            nonlocal inside
            start = time.perf_counter()
            result = original(self, *args)
            inside += time.perf_counter() - start
            return result

        with tempfile.TemporaryDirectory() as temporary:
            source = small_pictures(Path(temporary) / "in", 25, SIDE)
            apply(run, source, Path(temporary) / "first", device="cpu", quiet=True)  # what is measured once
            type(translator.network).translate = timed  # type: ignore[method-assign]
            start, inside = time.perf_counter(), 0.0
            apply(run, source, Path(temporary) / "second", device="cpu", quiet=True)
            whole = time.perf_counter() - start
            type(translator.network).translate = original  # type: ignore[method-assign]
        rows.append({"run": name, "n": 25, "ms": round(40 * whole, 1), "share": round(100 * inside / whole)})
        print(rows[-1], flush=True)
    return rows


TABLES = {
    "large": (
        measure_large,
        {"run": "run", "given": "given", "made": "made", "mb": "peak, MB", "seconds": "seconds"},
    ),
    "tiles": (
        measure_tiles,
        {
            "run": "run", "statistics": "statistics of norms", "tiles": "tiles", "off": "largest difference, /255",
            "psnr": "PSNR, dB", "seams": "seams",
        },
    ),
    "kills": (
        measure_kills,
        {
            "run": "run", "calls": "calls", "kills": "kills", "pictures": "pictures", "broken": "not whole",
            "twice": "made twice",
        },
    ),
    "share": (measure_share, {"run": "run", "n": "n", "ms": "ms a picture", "share": "in the network, %"}),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--memory", default="1GB", help="large: as that of limner apply")
    parser.add_argument("--n", type=int, default=500, help="kills: pictures")
    parser.add_argument("--kills", type=int, default=12, help="kills: at most")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    measure, columns = TABLES[given.table]
    rows = measure(given)
    if given.record:
        record(f"apply-{given.table}", columns, rows, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
