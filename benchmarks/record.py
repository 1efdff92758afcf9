"""Measured rows as JSON in ``benchmarks/results/``: what was run, where, when, at which commit, and the figures.

``benchmarks/tables.py`` makes the tables of docs/results.md from these files, so no figure is typed there.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The short hash of the code that is run, with a + where it has changes that are not committed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def machine(threads: int) -> str:
    """One line: the GPU, or processor, threads and precision; and torch."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}; torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    try:
        info = Path("/proc/cpuinfo").read_text("utf-8")
        name = next(line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    from limner.inference.precision import (
        has_bf16,
    )  # here: earlier checkouts, which are measured too, lack it

    precision = "bf16" if has_bf16() else "float32"
    used = f"{threads} thread{'s' * (threads > 1)} of {name}, {os.cpu_count()} cores"
    return f"{used}; torch {torch.__version__}, {precision}"


def record(
    name: str,
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    note: str = "",
    threads: int = 0,
    command: str = "",
) -> Path:
    """Write ``benchmarks/results/NAME.json``. A cell is a number, [value, low, high], text or None."""
    about = {
        "command": command or shlex.join(["python", *sys.argv]),
        "machine": machine(threads or torch.get_num_threads()),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "note": note,
    }
    return write(RESULTS / f"{name}.json", {**about, "columns": dict(columns), "rows": list(rows)})


def write(path: Path, table: Mapping[str, Any]) -> Path:
    """One line a row, so that a changed figure is a changed line."""
    head = json.dumps({k: v for k, v in table.items() if k != "rows"}, ensure_ascii=False, indent=1)
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in table["rows"])
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
    return path
