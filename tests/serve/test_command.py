"""`limner serve`: its options, and what it refuses before anything is loaded."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from limner import cli
from limner.commands import serve
from limner.serve.options import ServeOptions, named_runs, seconds_of
from limner.settings import LimnerError
from tests.serve.toys import COMMAND, ROOT, painter


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


# The whole command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a toy family."""
    return painter(tmp_path_factory.mktemp("toys"))


@contextmanager
def served(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [*COMMAND, "serve", *map(str, arguments), "--port", "0", "--threads", "1", "--device", "cpu"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = re.search(r"http://[0-9.]+:\d+", line := process.stdout.readline())
    assert found, line
    return found[0]


def asked(url: str, body: Any = None) -> tuple[int, Any]:
    """The status and the JSON of an answer; of no connection 0."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_toy_family_is_served_without_an_edit(run: Path, tmp_path: Path):
    with served(f"toys/painter={run}", "--state", tmp_path / "state") as process:
        url = address(process)
        assert asked(f"{url}/health")[0] == 200  # before anything is loaded
        assert asked(f"{url}/ready")[0] == 503
        until(lambda: asked(f"{url}/ready")[0] == 200)
        (model,) = asked(f"{url}/v1/models")[1]["data"]
        assert model["id"] == "toys/painter" and "tone" in json.dumps(model)
        body = {"prompt": "", "model": "toys/painter", "seed": 3, "n": 2, "steps": 2, "tone": "bright"}
        status, made = asked(f"{url}/v1/images/generations", body)
        assert status == 200, made
        pictures = [base64.b64decode(image["b64_json"]) for image in made["data"]]
        assert Image.open(io.BytesIO(pictures[0])).size == (16, 16) and pictures[0] != pictures[1]
        status, refused = asked(f"{url}/v1/images/generations", {**body, "tone": "brigt"})
        assert status == 400 and "bright" in refused["error"]["message"]
        (engine,) = children(process.pid)
        os.kill(engine, signal.SIGKILL)
        until(lambda: asked(f"{url}/ready")[0] == 503)
        status, job = asked(f"{url}/v1/jobs", {**body, "type": "generation"})
        assert (status, job["status"]) == (202, "queued") and asked(f"{url}/ready")[0] == 503
        until(lambda: asked(f"{url}/ready")[0] == 200)
        until(lambda: asked(f"{url}/v1/jobs/{job['id']}")[1]["status"] == "completed")
        done = asked(f"{url}/v1/jobs/{job['id']}")[1]["result"]
        assert [base64.b64decode(image["b64_json"]) for image in done["data"]] == pictures
        again = asked(f"{url}/v1/images/generations", body)[1]
        assert [base64.b64decode(image["b64_json"]) for image in again["data"]] == pictures
        (engine,) = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert not lives(engine)
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_two_servers_keep_their_jobs_apart(run: Path):
    """Without --state."""
    with served(run) as one, served(run) as other:
        urls = address(one), address(other)
        assert len(set(urls)) == 2 and [asked(f"{url}/health")[0] for url in urls] == [200, 200]


def test_the_engine_ends_when_its_front_is_killed(run: Path, tmp_path: Path):
    with served(run, "--state", tmp_path / "state") as process:
        until(lambda: children(process.pid))
        (engine,) = children(process.pid)
        process.kill()
        process.wait()
        until(lambda: not lives(engine), 20)


def test_a_damaged_run_ends_the_command_with_its_reason(run: Path, tmp_path: Path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/model.safetensors").write_bytes(b"nothing")
    with served(run, tmp_path / "bad", "--state", tmp_path / "state") as process:
        assert process.wait(120) == 2
        assert process.stderr is not None
        said = process.stderr.read().rstrip().splitlines()[-1]
        assert said.startswith("limner: ") and "model.safetensors" in said
