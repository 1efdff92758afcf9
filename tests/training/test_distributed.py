"""Two gloo processes against one: the same images in the same order, the same draws, the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from limner import checkpoint
from limner.distributed import Ranks
from limner.training.journal import read_log
from tests.helpers import animate, paint

ATOL = 1e-4  # the stated tolerance: sums are taken in another order


def train(processes: int, images: Path, out: Path, *flags: object, family: str = "vae") -> None:
    launch(processes, "train", family, images, "--out", out, "--preset", "tiny", "--training.batch", 8,
           "--training.schedule", "constant", "--training.log-every", 1, "--training.precision", "float32",
           "--training.samples", 4, *flags)  # fmt: skip


def launch(processes: int, *arguments: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """The command in so many processes."""
    several = [
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "--",
    ]  # else --n is torchrun's
    command = [sys.executable, "-m", *(several if processes > 1 else []), "limner.cli", *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)
    assert (done.returncode == 0) == ok, done.stderr[-3000:]
    return done


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
    train(2, images, changed, "--budget", "48img")
    train(1, images, changed, "--resume", "--training.accumulate", 2, "--budget", "96img")
    train(2, images, changed, "--resume", "--training.accumulate", 1, "--budget", "128img")
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


def test_two_processes_train_on_clips_as_one_does(tmp_path: Path) -> None:
    """Levels by frame, given frames and dropped captions are drawn alike."""
    films = tmp_path / "films"
    for i in range(24):
        animate(films / f"{i}.png", 4, i)
    clips = ("--data.frames", 4, "--size", 16)
    one, two = tmp_path / "one", tmp_path / "two"
    train(1, films, one, "--training.accumulate", 2, "--budget", "24img", *clips, family="video")
    train(2, films, two, "--budget", "16img", *clips, family="video")
    train(2, films, two, "--resume", "--budget", "24img", family="video")
    wanted, got = losses(one), losses(two)
    assert len(wanted) == 3 and wanted.keys() == got.keys()
    for seen, loss in wanted.items():
        assert abs(got[seen] - loss) <= ATOL * abs(loss)


STEPS = """
import json, os, sys, torch
from limner.distributed import join
from tests.training.test_loop import loop_for, settings
with join(torch.device("cpu")) as ranks:
    loop = loop_for(settings(batch=6), ranks=ranks)
    loop.model.stage[2].running_var.fill_(1 / 3)
    for _ in range(3):
        loop.take_step(0.0)
    moved = {name: value.tolist() for name, value in loop.model.named_buffers()}
threads = [open(f"/proc/self/task/{one}/comm").read() for one in os.listdir("/proc/self/task")]
assert not [name for name in threads if "gloo" in name], "a thread that outlives the group may abort the exit"
open(f"{sys.argv[1]}/{ranks.rank}.json", "w").write(json.dumps(moved))
"""


def test_buffers_are_alike_on_every_process(tmp_path: Path) -> None:
    """Only the first process saves: what a loss keeps in buffers must not differ, or resuming is not exact."""
    (tmp_path / "steps.py").write_text(STEPS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, str(tmp_path / "steps.py"), str(tmp_path)],
        capture_output=True, text=True, env=variables, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, *others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3))
    assert first["first.2.running_mean"] != [0.0] * 4
    assert all(other == first for other in others)
    assert first["stage.2.running_var"] == torch.full((4,), 1 / 3).tolist()


def test_a_batch_that_does_not_divide_is_refused(images: Path, tmp_path: Path) -> None:
    done = launch(2, "train", "vae", images, "--out", tmp_path / "run", "--preset", "tiny",
                  "--training.batch", 7, ok=False)  # fmt: skip
    assert "multiple of 2" in done.stderr and done.stderr.count("limner: ") == 1
    (tmp_path / "empty").mkdir()  # the second process waits for what the first one does not find
    done = launch(2, "train", "vae", tmp_path / "empty", "--out", tmp_path / "run", ok=False)
    assert done.stderr.count("limner: ") == 1


def test_shares_cover_everything_once() -> None:
    for n in (0, 1, 3, 8, 101):
        for world in (1, 2, 8):
            parts = [list(range(n))[Ranks(rank, world).part(n)] for rank in range(world)]
            if n < world:
                assert parts == [list(range(n))] * world
            else:
                assert [i for part in parts for i in part] == list(range(n)) and all(parts)


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    """Drawing, describing and probing are shared; the first measures, writes and speaks, once."""
    for seed, name in enumerate(("cat", "dog")):
        paint(tmp_path / "images" / name, 41, seed=seed)
    run, results = tmp_path / "run", []
    train(1, tmp_path / "images", run, "--budget", "64img", "--data.holdout", 0.3)
    for processes in (1, 2):
        out = tmp_path / f"of {processes}"
        printed = launch(
            processes, "evaluate", run, tmp_path / "images", "--n", 33, "--to", out, "--json"
        ).stdout
        results.append(json.loads(printed))  # one JSON, so only one printed
        assert results[-1] == json.loads((out / "evaluation.json").read_text()) | {"to": str(out)}
    one, two = ({k: v for k, v in figures(one).items() if k != "to"} for one in results)
    assert (
        one.keys() == two.keys()
        and {"kid/value", "probe_accuracy/value", "reconstruction/psnr"} <= one.keys()
    )
    for name, value in one.items():
        assert two[name] == (
            pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value
        ), name
    done = launch(2, "evaluate", run, tmp_path / "images", "--as-training-data", ok=False)
    assert "without torchrun" in done.stderr


def figures(result: dict[str, Any], above: str = "") -> dict[str, Any]:
    """What is nested as one table."""
    flat: dict[str, Any] = {}
    for name, value in result.items():
        flat |= figures(value, f"{above}{name}/") if isinstance(value, dict) else {above + name: value}
    return flat


def test_the_codebook_of_moving_averages_is_that_of_one_process(images: Path, tmp_path: Path) -> None:
    """With codes that are restarted in every step."""
    flags = [
        "--preset", "tiny", "--model.kind", "vqvae", "--model.unused", 16, "--model.codes", 64,
        "--model.no-standardise", "--budget", "32img", "--training.batch", 8, "--training.schedule", "constant",
        "--training.precision", "float32", "--training.samples", 4,
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    launch(1, "train", "tokens", images, "--out", one, *flags, "--training.accumulate", 2)
    launch(2, "train", "tokens", images, "--out", two, *flags)
    books = [checkpoint.read_model(out)[1]["tokenizer.network.codebook.entries"] for out in (one, two)]
    torch.testing.assert_close(*books, atol=ATOL, rtol=0)
    assert not torch.equal(books[0], books[0].roll(1, 0))


def test_a_pool_of_earlier_images_is_that_of_one_process(images: Path, tmp_path: Path) -> None:
    flags = [
        "--preset", "tiny", "--budget", "48img", "--training.batch", 8, "--training.schedule", "constant",
        "--training.precision", "float32", "--training.samples", 4, "--training.log-every", 1,
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    launch(1, "train", "cyclegan", images, images, "--out", one, *flags, "--training.accumulate", 2)
    launch(2, "train", "cyclegan", images, images, "--out", two, *flags)
    wanted, got = losses(one), losses(two)
    assert len(wanted) == 6 and got == pytest.approx(wanted, rel=1e-3)
    for name in ("wanted", "given"):
        pools = [checkpoint.read_model(out)[1][f"pools.{name}.images"].int() for out in (one, two)]
        assert len(pools[0].unique()) > 50
        torch.testing.assert_close(*pools, atol=1, rtol=0)  # a rounding may fall on either side
