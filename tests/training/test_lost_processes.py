"""A process of several is killed or stopped: the others end with a sentence, and a restart goes on to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from limner import checkpoint
from limner.training.journal import read_log
from limner.watch import Watch

pytestmark = pytest.mark.process
Process = subprocess.Popen[str]
TRAIN = ["--preset", "tiny", "--training.batch", "8", "--training.log-every", "1", "--training.samples", "0",
         "--training.save-every", "400img", "--training.evaluate-every", "1h",
         "--training.precision", "float32"]  # fmt: skip  # two runs that measure bf16 may choose apart
LIMNER = ["-m", "limner.cli"]


def torchrun(restarts: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts),
            "-m", "limner.cli"]  # fmt: skip


def start(program: list[str], images: Path, out: Path, budget: str, *flags: str) -> Process:
    command = [sys.executable, *program, "train", "vae", str(images), "--out", str(out), *TRAIN]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--budget", budget, *flags], env=variables, stderr=subprocess.PIPE, text=True
    )


def wait_for(seen: int, out: Path, process: Process) -> None:
    deadline = time.monotonic() + 120
    while max((line["seen"] for line in read_log(out)), default=0) < seen:
        assert process.poll() is None and time.monotonic() < deadline, (
            process.stderr and process.stderr.read()
        )
        time.sleep(0.02)


def children(process: Process) -> list[int]:
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()))


def ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def finish(process: Process, seconds: float = 60) -> str:
    _, errors = process.communicate(timeout=seconds)
    return errors


def sentences(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("limner: ")]


def assert_same(one: Path, other: Path) -> None:
    expected, got = checkpoint.resume(one), checkpoint.resume(other)
    assert expected and got and expected.state["seen"] == got.state["seen"]
    for name, tensor in {**expected.model_tensors, **expected.live_tensors}.items():
        assert torch.equal(tensor, {**got.model_tensors, **got.live_tensors}[name]), name


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_torchrun_restarts_a_killed_rank_and_the_end_is_the_same(
    victim: int, images: Path, tmp_path: Path
) -> None:
    """One command, without --resume."""
    process = start(torchrun(3), images, tmp_path / "killed", "1600img")
    wait_for(800, tmp_path / "killed", process)
    os.kill(sorted(children(process))[victim], signal.SIGKILL)
    errors = finish(process)
    assert process.returncode == 0, errors
    assert len(sentences(errors)) == 1 and "Another process has ended" in errors
    assert "Traceback" not in errors
    process = start(torchrun(0), images, tmp_path / "unbroken", "1600img")
    finish(process)
    assert_same(tmp_path / "unbroken", tmp_path / "killed")
    assert not (tmp_path / "killed" / ".launcher").exists()  # of an unfinished run alone


def test_a_restart_leaves_an_earlier_run_alone(images: Path, tmp_path: Path) -> None:
    """The first start is refused, and so is the restart: only a run that the same torchrun began goes on."""
    out = tmp_path / "run"
    finish(start(LIMNER, images, out, "80img"))
    before = (out / "model.safetensors").stat().st_mtime_ns
    process = start(torchrun(1), images, out, "160img")
    errors = finish(process)
    assert process.returncode == 1 and "already holds a run" in errors
    assert (out / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow  # half a minute
def test_torchrun_restarts_a_stopped_rank(images: Path, tmp_path: Path) -> None:
    process = start(torchrun(1), images, tmp_path / "run", "1600img", "--resume")
    wait_for(800, tmp_path / "run", process)
    os.kill(children(process)[1], signal.SIGSTOP)
    began = time.monotonic()
    errors = finish(process, 120)
    assert process.returncode == 0 and time.monotonic() - began < 90, errors
    assert len(sentences(errors)) == 1 and "gave no sign of life for 30 s" in errors
    assert read_log(tmp_path / "run")[-1]["seen"] == 1600


def test_a_killed_launcher_leaves_nobody_behind(images: Path, tmp_path: Path) -> None:
    process = start(torchrun(0), images, tmp_path / "run", "10m")
    wait_for(80, tmp_path / "run", process)
    ranks = children(process)
    process.kill()
    errors = finish(process)  # which waits for all that hold stderr
    assert len(sentences(errors)) == 1 and "is gone" in errors
    deadline = time.monotonic() + 10  # a process closes stderr a moment before it ends
    while not all(map(ended, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(ended, ranks))


# ---- the watch alone


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Little patience; the exit codes that a watch asks for."""
    codes: list[int] = []
    for name, value in (("SILENCE", 20), ("ARRIVAL", 30), ("SECOND", 0.01)):
        monkeypatch.setattr(f"limner.watch.{name}", value)
    monkeypatch.setattr("os._exit", codes.append)
    return codes


def test_a_process_that_beats_is_not_lost(exits: list[int]) -> None:
    store = dist.HashStore()
    one, other = (Watch(store, rank, 2) for rank in range(2))
    one.start()
    other.start()
    time.sleep(1)
    assert not one.found and not other.found and not exits
    other.over.set()  # it no longer beats
    one.join(timeout=10)
    assert "Process 2 of 2 gave no sign of life" in one.reason() and exits == [2]


def test_a_process_that_never_came_is_given_longer(
    exits: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    Watch(dist.HashStore(), 0, 2).run()
    assert "Process 2 of 2 did not start within 30 s" in capfd.readouterr().err and exits == [2]
