"""How long does `limner evaluate` of a folder take, and in how much memory? Beside another checkout.

    git worktree add ../before COMMIT
    python benchmarks/evaluating.py --n 5000 --real 20000 --against ../before --record

Both sets are pictures of blobs of 32x32, in zips. One run each, since it takes minutes; processor time is what
other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from record import record

ROOT = Path(__file__).parents[1]
WORKER = """
import json, resource, sys
from limner.evaluation.evaluate import evaluate
from limner.evaluation.options import EvaluateOptions
found = evaluate(sys.argv[1], [sys.argv[2]], EvaluateOptions(n=int(sys.argv[3])), to=sys.argv[4], quiet=True)
used = resource.getrusage(resource.RUSAGE_SELF)  # its ru_maxrss would count the process that started this one too
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(json.dumps([int(peak) / 1024, used.ru_utime + used.ru_stime, found.to_json()["frechet"]["value"]]))
"""


def pictures(path: Path, count: int, seed: int) -> Path:
    """A zip of ``count`` PNGs of 32x32."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            blobs = Image.fromarray(rng.integers(0, 256, (4 + seed, 4, 3), dtype=np.uint8))
            blobs.resize((32, 32), Image.Resampling.BICUBIC).save(file := io.BytesIO(), "PNG")
            archive.writestr(f"{i:05d}.png", file.getvalue())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=5000, help="images that are measured")
    parser.add_argument("--real", type=int, default=20_000)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/evaluating.json")
    given = parser.parse_args()
    sides = {"this checkout": ROOT} | ({"before": given.against.resolve()} if given.against else {})
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        made, real = (
            pictures(Path(scratch, name), count, seed)
            for seed, (name, count) in enumerate((("made.zip", given.n), ("real.zip", given.real)))
        )
        for side, checkout in sides.items():
            environment = {**os.environ, "PYTHONPATH": str(checkout), "LIMNER_CACHE": f"{scratch}/{side}"}
            command = [
                sys.executable,
                "-c",
                WORKER,
                str(made),
                str(real),
                str(given.n),
                f"{scratch}/out {side}",
            ]
            run = subprocess.run(
                command, env=environment, cwd=checkout, capture_output=True, text=True, check=True
            )
            memory, busy, frechet = json.loads(run.stdout.splitlines()[-1])
            row = {
                "side": side,
                "memory": round(memory),
                "busy": round(busy, 1),
                "frechet": round(frechet, 4),
            }
            rows.append(row)
            print(row, flush=True)
    if given.record:
        columns = {
            "side": "side",
            "memory": "peak MiB",
            "busy": "processor time, s",
            "frechet": "Frechet distance",
        }
        note = f"limner evaluate of {given.n:,} images against {given.real:,} of 32x32, from zips, packing included"
        print(f"Written: {record('evaluating', columns, rows, note)}")


if __name__ == "__main__":
    main()
