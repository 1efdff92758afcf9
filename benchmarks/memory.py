"""The largest memory of training, drawing and measuring with families from text to image.

    python benchmarks/memory.py --record

Every command is a process of its own; the figure is its peak of resident memory, by the system's count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from record import record

FAMILIES = ("tokens", "dalle", "dalle_mini", "masked", "clip", "unclip", "flow")
DRAWS_NOTHING = ("tokens", "clip")
PARENTS = {"dalle": "tokens", "dalle_mini": "tokens", "masked": "tokens", "unclip": "clip"}
COLUMNS = {"command": "command", "mb": "peak, MB"}


def peak(*words: str) -> int:
    """Megabytes of `limner WORDS`."""
    process = subprocess.Popen([sys.executable, "-m", "limner.cli", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"limner {' '.join(words)} failed.")
    return usage.ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", default="20s", help="of each training")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            out = str(Path(folder) / family)
            parent = PARENTS.get(family, "")
            built_on = [f"--model.{parent}", str(Path(folder) / parent)] if parent else []
            train = ["train", family, "shapes", "--size", "32", "--preset", "small"]
            peaks = {f"train {family}": peak(*train, "--budget", given.budget, "--out", out, *built_on)}
            if family not in DRAWS_NOTHING:
                to = str(Path(folder) / "drawn.png")
                asked = ["--prompt", "a large red circle above a small blue square", "--n", "64", "--to", to]
                peaks[f"sample {family}, 64 images"] = peak("sample", out, *asked)
                peaks[f"evaluate {family}, 256 images"] = peak("evaluate", out, "shapes", "--n", "256")
            for command, mb in peaks.items():
                rows.append({"command": command, "mb": mb})
                print(rows[-1], flush=True)
    if given.record:
        record("memory", COLUMNS, rows)


if __name__ == "__main__":
    main()
