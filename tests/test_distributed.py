"""Two gloo processes against one: the same images in the same order, the same draws, the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from limner import checkpoint
from limner.journal import read_log

ATOL = 1e-4  # the stated tolerance: sums are taken in another order


def train(processes: int, images: Path, out: Path, *flags: object) -> None:
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [*launch, "limner.cli", "train", "vae", images, "--out", out, "--preset", "tiny",
               "--training.batch", 8, "--training.schedule", "constant", "--training.log-every", 1,
               "--training.precision", "float32", "--training.samples", 4, *flags]  # fmt: skip
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, env=variables, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def losses(out: Path) -> dict[int, float]:
    return {
        line["seen"]: sum(v for k, v in line.items() if "/" in k and not k.endswith("/gradient"))
        for line in read_log(out)
        if "step" in line
    }


def test_two_processes_equal_one_that_accumulates(images: Path, tmp_path: Path) -> None:
    """And the number may change between save and resume, both ways."""
    one, two, changed = tmp_path / "one", tmp_path / "two", tmp_path / "changed"
    train(1, images, one, "--training.accumulate", 2, "--budget", "128img")
    train(2, images, two, "--budget", "128img")
    train(2, images, changed, "--budget", "64img")
    train(1, images, changed, "--resume", "--training.accumulate", 2, "--budget", "128img")
    wanted, got, mixed = losses(one), losses(two), losses(changed)
    assert len(wanted) == 16 and wanted.keys() == got.keys() == mixed.keys()
    for seen, loss in wanted.items():
        assert abs(got[seen] - loss) <= ATOL * abs(loss)
        assert abs(mixed[seen] - loss) <= ATOL * abs(loss)
    expected = checkpoint.read_model(one)[1]
    for out in (two, changed):
        tensors = checkpoint.read_model(out)[1]
        for name, tensor in expected.items():
            torch.testing.assert_close(tensors[name], tensor, atol=ATOL, rtol=ATOL)


def test_a_batch_that_does_not_divide_is_refused(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
               "limner.cli", "train", "vae", images, "--out", tmp_path / "run", "--preset", "tiny",
               "--training.batch", 7]  # fmt: skip
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "multiple of 2" in done.stderr
