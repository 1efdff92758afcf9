"""Signals to compare and to the training that it runs: both end, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from limner import checkpoint
from limner.training.journal import read_log
from tests.helpers import paint

pytestmark = pytest.mark.process
Command = Callable[..., subprocess.CompletedProcess[str]]


def arguments(tmp_path: Path) -> list[str]:
    images = paint(tmp_path / "images", 60)
    return ["compare", str(images), "--families", "vae", "--budget", "3kimg", "--preset", "tiny", "--n", "30",
            "--to", str(tmp_path / "to"), "--", "--training.batch", "8", "--training.log-every", "1"]  # fmt: skip


def start(command: list[str], run: Path) -> subprocess.Popen[str]:
    """A compare whose training has taken some steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "limner.cli", *command], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline, before = time.monotonic() + 120, len(read_log(run))
    while len(read_log(run)) < before + 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def training(run: Path) -> int:
    """The process that holds a run's lock."""
    return int((run / checkpoint.LOCK).read_text().split()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_training_saves_and_ends_and_the_same_command_goes_on(
    number: int, limner: Command, tmp_path: Path
) -> None:
    command, run = arguments(tmp_path), tmp_path / "to" / "vae"
    process = start(command, run)
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "same command" in said, errors
    assert "Traceback" not in errors
    resumed = checkpoint.resume(run)
    assert resumed and resumed.state["seen"] == max(line["seen"] for line in read_log(run) if "step" in line)
    with checkpoint.lock(run):  # no training is left behind
        pass
    if number == signal.SIGHUP:
        return
    done = limner(*command[: command.index("--")], "--json", *command[command.index("--") :])
    (row,) = json.loads(done.stdout)["rows"]
    assert "failed" not in row and row["seen"] >= 3000


def test_a_training_that_is_killed_is_not_finished_rather_than_bad(limner: Command, tmp_path: Path) -> None:
    command, run = arguments(tmp_path), tmp_path / "to" / "vae"
    process = start(command, run)
    os.kill(training(run), signal.SIGKILL)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "vae did not finish" in said and "SIGKILL" in said, errors
    assert "Take" not in said


def test_a_killed_compare_leaves_no_training_behind(tmp_path: Path) -> None:
    run = tmp_path / "to" / "vae"
    process = start(arguments(tmp_path), run)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (run / checkpoint.LOCK).read_text():
        time.sleep(0.05)
    with checkpoint.lock(run):
        assert checkpoint.resume(run)


def test_a_family_in_use_ends_the_comparison(limner: Command, tmp_path: Path) -> None:
    with checkpoint.lock(tmp_path / "to" / "vae"):
        done = limner(*arguments(tmp_path), ok=False)
    assert done.returncode == 2 and f"process {os.getpid()}" in done.stderr and "--to" in done.stderr
    with checkpoint.lock(tmp_path / "to"):
        done = limner(*arguments(tmp_path), ok=False)
    assert done.returncode == 2 and f"process {os.getpid()}" in done.stderr
