"""A save of which any call fails leaves the earlier checkpoint; a small round of benchmarks/kills.py."""

from __future__ import annotations

import builtins
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limner import api, checkpoint
from limner.core import LimnerError

KILLS = Path(__file__).parents[1] / "benchmarks" / "kills.py"
CALLS = [(os, name) for name in ("mkdir", "rename", "replace", "link", "fsync")] + [
    (builtins, "open"), (sys.modules["limner.checkpoint.tensors"], "save_file"),
]  # fmt: skip


def failing(act: Callable[..., Any], counter: list[int]) -> Callable[..., Any]:
    """``act``, whose call fails at which the counter reaches zero."""

    def call(*arguments: Any, **named: Any) -> Any:
        counter[0] -= 1
        if counter[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return act(*arguments, **named)

    return call


def test_a_save_of_which_any_call_fails_leaves_what_was_there(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = {"samples": 0, "batch": 8}
    api.train("vae", images, run, preset="tiny", budget="16img", quiet=True, training=training)
    before = checkpoint.resume(run)
    assert before
    saved, at, failed = False, 0, 0
    while not saved:
        at += 1
        with pytest.MonkeyPatch.context() as patch:
            counter = [at]
            for module, name in CALLS:
                patch.setattr(module, name, failing(getattr(module, name), counter))
            header = before.header | {"seen": before.header["seen"] + 8}
            try:
                checkpoint.save(run, before.model_tensors, header, before.live_tensors, before.state)
                saved = counter[0] > 0
            except LimnerError as error:
                failed += 1
                assert "bytes" in str(error) and str(run) in str(error)
        assert checkpoint.resume(run) and checkpoint.load(run)
        hidden = [p.name for p in run.rglob(".*") if p.name not in (checkpoint.LOCK, ".launcher")]
        assert not hidden, (at, hidden)
    assert failed >= 8


@pytest.mark.slow  # a minute
def test_some_kills(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(KILLS),
        "--families",
        "vae",
        "--kills",
        "6",
        "--in-save",
        "3",
        "--failing",
        "12",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "SIGKILLs: 6" in done.stdout and "a checkpoint loads: 6" in done.stdout
