"""Damaged files of every kind: no traceback, no hang, flat memory (see benchmarks/mutations.py)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "mutations.py"
KINDS = ["images", "archives", "tables", "models", "settings", "cache"]


def failures(kind: str, n: int, seed: int) -> list[str]:
    command = [sys.executable, str(SCRIPT), "--worker", kind, "--n", str(n), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["n"] == n
    return row["failures"]


@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_damaged_files(kind):
    assert not failures(kind, 40, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind):
    assert not failures(kind, 2000, seed=0)
