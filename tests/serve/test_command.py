"""`limner serve`: its options, and what it refuses before anything is loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from limner import cli
from limner.commands import serve
from limner.serve.options import ServeOptions, named_runs, seconds_of
from limner.settings import LimnerError

ROOT = Path(__file__).parents[2]


def test_help_needs_no_torch_and_explains_every_option():
    code = (
        "import sys\nfrom limner.cli import run\n"
        "try: run(['serve', '--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stdout.rstrip().endswith("False"), done.stderr
    for words in ("RUN...", "ID=RUN", "--token-file", "--drain", "rather than refuse them", "24h"):
        assert words in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("│ --")]
    assert len(lines) == len(ServeOptions.__dataclass_fields__) - 1  # the runs have no flag


@pytest.mark.parametrize(
    ("runs", "named"),
    [
        (("runs/flow",), {"flow": "runs/flow"}),
        (("runs/flow/",), {"flow": "runs/flow/"}),
        (("runs/flow/model.safetensors",), {"flow": "runs/flow/model.safetensors"}),
        (("me/flow=runs/a", "runs/b"), {"me/flow": "runs/a", "b": "runs/b"}),
        (("runs/my run (2)",), {"my-run-2": "runs/my run (2)"}),
        (("runs/x y=z",), {"x-y-z": "runs/x y=z"}),  # no id: a folder
    ],
)
def test_ids_of_runs(runs: tuple[str, ...], named: dict[str, str]):
    assert named_runs(runs) == named


@pytest.mark.parametrize(
    ("runs", "said"),
    [((), "at least one run"), (("a/x", "b/x"), "Two runs"), (("x=a", "x=b"), "Two runs")],
)
def test_bad_runs(runs: tuple[str, ...], said: str):
    with pytest.raises(LimnerError, match=said):
        named_runs(runs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": "0.0.0.0"}, "--token-file"),
        ({"port": 65536}, "--port"),
        ({"keep": "1 week"}, "--keep"),
        ({"drain": "-1s"}, "--drain"),
        ({"drain": "nan"}, "--drain"),
        ({"batching": "fast"}, "--batching"),
        ({"max_queue": 0}, "--max-queue"),
        ({"request_seconds": float("nan")}, "--request-seconds"),
    ],
)
def test_bad_options(changes: dict, said: str):
    with pytest.raises(LimnerError, match=said):
        ServeOptions(**changes)


def test_lengths_of_time():
    assert [seconds_of(text, "--keep") for text in ("90s", "1.5m", "24h", "7d", "0s")] == [
        90, 90, 86400, 604800, 0,
    ]  # fmt: skip
    assert ServeOptions(host="0.0.0.0", token_file="tokens").keep_seconds == 86400


@pytest.mark.parametrize(
    ("argv", "said"), [(["serve", "nowhere"], "There is no run"), (["serve"], "at least one run")]
)
def test_mistakes_are_said_before_anything_is_loaded(argv: list[str], said: str):
    with pytest.raises(LimnerError, match=said):
        cli.run(argv)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setitem(sys.modules, "httptools", None)
    with pytest.raises(LimnerError, match=r"pip install 'limner\[serve\]'"):
        cli.run(["serve", str(tmp_path)])


def test_the_engine_is_the_same_command_line_again(monkeypatch: pytest.MonkeyPatch):
    """So whatever made this one find its families makes the engine find them."""
    program = "import os, sys; os.write(int(os.environ['LIMNER_ENGINE']), repr(sys.argv[1:]).encode())"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", program, "serve", "runs/x", "--port", "0"])
    read, write = os.pipe()
    process = serve.spawn(write)
    os.close(write)
    assert process.wait(30) == 0
    assert os.read(read, 1000).decode() == "['serve', 'runs/x', '--port', '0']"
    os.close(read)


def test_the_engine_is_in_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "import time; time.sleep(60)"])
    read, write = os.pipe()
    process = serve.spawn(write)
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.close(read)
    os.close(write)
