"""The family of docs/new-family.md works as that page says: one file added, nothing else edited."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its tests, with the page's family in it."""
    house = tmp_path_factory.mktemp("house")
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("limner", "tests"):
        shutil.copytree(ROOT / name, house / name, ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", house)
    page = (ROOT / "docs" / "new-family.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 80
    (house / "limner" / "families" / "imle.py").write_text(code, "utf-8")
    return house


def run(house: Path, *words: object) -> str:
    variables = {**os.environ, "PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, cwd=house, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_page_shows_its_commands(house: Path) -> None:
    """Train, sample, evaluate and the list, by the real command."""
    pytest.importorskip("sklearn")
    out = house / "runs" / "imle"
    run(
        house, "limner.cli", "train", "imle", "digits", "--out", out, "--preset", "tiny", "--budget", "640img"
    )
    run(house, "limner.cli", "sample", out, "--n", 4, "--to", house / "imle.png")
    assert (house / "imle.png").stat().st_size > 1000
    figures = json.loads(run(house, "limner.cli", "evaluate", out, "digits", "--n", 30, "--json"))
    assert figures
    assert "imle" in run(house, "limner.cli", "families")


def test_it_keeps_the_contract(house: Path) -> None:
    said = run(house, "pytest", "tests/families/test_contract.py", "-k", "imle", "-p", "no:cacheprovider")
    assert int(re.findall(r"(\d+) passed", said)[0]) >= 15
