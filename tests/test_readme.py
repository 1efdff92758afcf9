"""Every command in the READMEs is run, in order, with its budgets cut to seconds and the smallest preset."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from limner import families
from tests.helpers import animate, paint

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)


def commands(name: str) -> list[str]:
    return [line for block in blocks(name, "sh") for line in block.splitlines() if line.strip()]


def test_both_languages_show_the_same_commands_families_and_files() -> None:
    assert commands(READMES[0]) == commands(READMES[1])
    for name in READMES:
        text = (ROOT / name).read_text("utf-8")
        assert set(re.findall(r"^\|`(\w+)`\|", text, re.MULTILINE)) == set(families.names())
        tree = set(re.findall(r"^  (\w+(?:\.py|/)) ", text, re.MULTILINE))
        rooms = [p for p in (ROOT / "limner").iterdir() if not p.name.startswith("_")]
        assert tree == {p.name + "/" * p.is_dir() for p in rooms}
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (ROOT / link).exists(), link


def test_make_targets() -> None:
    """What `make demo` and `make test` would run; the demo itself is run by another test."""
    for target, words in {"demo": "limner demo", "test": "-m pytest"}.items():
        shown = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert (words in shown and "constraints.txt" in shown) or ".venv" in shown
    assert [c for c in commands(READMES[0]) if c.startswith("make")] == ["make demo", "make test"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for name in ("photos", "sketches", "drawings", "horses", "zebras"):
        paint(folder / name, 24)
    paint(folder / "large", 4, (160, 160))
    for i in range(6):
        animate(folder / "clips" / f"{i}.png", 8, i)
    return folder


def serves(words: list[str], place: Path) -> None:
    """The server starts, is ready, and ends by SIGTERM as other commands do."""
    command = [sys.executable, "-m", "limner.cli", *words, "--port", "0", "--state", str(place / "state")]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=place, env=variables) as server:
        try:
            assert server.stdout
            first = next(line for line in server.stdout if "http://" in line)
            address = re.search(r"http://[\w.]+:\d+", first)[0]  # type: ignore[index]
            end = time.monotonic() + 60
            while time.monotonic() < end:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/ready") as answer:
                    assert answer.status == 200
                    break
                time.sleep(0.1)
            else:
                raise AssertionError("the server was not ready within a minute")
        finally:
            server.terminate()
            server.wait(60)
    assert server.returncode == 128 + signal.SIGTERM


def test_every_command_runs(place: Path, limner: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    ran = 0
    for line in commands(READMES[0]):
        words = shlex.split(line)
        if words[0] == "make":
            continue
        assert words[0] == "limner", line
        if words[1] == "serve":
            serves(words[1:], place)
            ran += 1
            continue
        if words[1] == "compare":
            words += ["--preset", "tiny", "--n", "30"]
        if words[1] == "train" and "--resume" not in words:
            words += ["--preset", "tiny"]
        if "--budget" in words:
            words[words.index("--budget") + 1] = "4s" if "--resume" in words else "2s"
        if "--as-training-data" in words:
            words += ["--classifier-preset", "tiny", "--classifier-budget", "640img"]
        if words[1] == "synthesize":  # a classifier of two seconds is sure of nothing
            words[words.index("--n") + 1] = "30"
            words += ["--confidence", "0.01"]
        if words[1] == "project":
            words += ["--steps", "5", "--tries", "8"]
        if words[1] == "evaluate":
            words += ["--n", "30"]
        limner(*words[1:], cwd=place)
        ran += 1
    assert ran >= 10
    for name in (
        "new.png",
        "faces.png",
        "digits.npz",
        "predictions.csv",
        "predictions.png",
        "search.png",
        "projection.png",
        "larger/000.png",
        "coloured.png",
        "plain.png",
        "painted.png",
        "moves.webp",
        "alive.webp",
    ):
        assert (place / name).exists(), name
    assert (place / "digits").is_dir() and len(list((place / "synthetic").glob("*.png"))) == 30


def test_the_python_example_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(READMES[0], "python")
    monkeypatch.chdir(place)
    code = code.replace('budget="20m"', 'budget="2s", preset="tiny", quiet=True').replace(
        "runs/photos", "runs/python"
    )
    names: dict[str, object] = {}
    exec(code, names)
    assert len(names["pictures"]) == 16  # type: ignore[arg-type]
