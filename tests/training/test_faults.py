"""What a training survives or refuses: states that are not sane, damaged logs and settings, other splits, signals."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import limner as toolkit
from limner import checkpoint, config, families
from limner.checkpoint import pack_state
from limner.commands.train import parse_train
from limner.config import Run
from limner.settings import DataOptions, LimnerError, Optimiser, Stopped
from limner.training import sanity
from limner.training.journal import Journal, read_log
from limner.training.loop import Loop
from limner.training.optim import load_state, make_optimiser
from limner.training.run import train
from tests.helpers import paint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("pictures"), 40)


def run_of(pictures: Path, budget: str, family: str = "vae", **training: Any) -> Run:
    tiny = families.load(family).presets["tiny"]
    quick = {
        "batch": 8,
        "save_every": "16img",
        "samples": 0,
        "log_every": 1,
        "schedule": "constant",
    } | training
    data = DataOptions(**quick.pop("data", {}))
    settings = dataclasses.replace(tiny.training, **quick)
    return Run(family, (str(pictures),), "tiny", (16, 16), budget, 3, tiny.model, settings, data)


def with_rate(run: Run, rate: float) -> Run:
    optimisers = {n: dataclasses.replace(o, lr=rate) for n, o in run.training.optimisers.items()}
    return dataclasses.replace(run, training=dataclasses.replace(run.training, optimisers=optimisers))


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 32 images."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(run_of(pictures, "32img"), out, quiet=True)
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def saved(out: Path) -> list[int]:
    return sorted(int(folder.name.partition(".")[0]) for folder in checkpoint.checkpoints(out))


# ---- states that are not sane


@pytest.mark.parametrize("budget", ["8img", "400img"])
def test_a_run_that_begins_by_exploding_keeps_its_start(pictures: Path, tmp_path: Path, budget: str) -> None:
    """Even where the budget ends with the step that explodes."""
    with pytest.raises(LimnerError, match=r"after 3 returns .* lower the learning rate"):
        train(with_rate(run_of(pictures, budget), 1e30), tmp_path / "run", quiet=True)
    assert saved(tmp_path / "run") == [0]
    resumed = checkpoint.resume(tmp_path / "run")
    assert resumed and 0 < resumed.state["loss"] == resumed.state["first_loss"] < float("inf")
    assert not checkpoint.not_finite(checkpoint.read_model(tmp_path / "run")[1])


def test_a_run_that_explodes_keeps_its_last_sane_checkpoint(pictures: Path, out: Path) -> None:
    before = checkpoint.read_model(out)[0]["digest"]
    with pytest.raises(LimnerError, match="after 3 returns"):
        train(with_rate(run_of(pictures, "400img"), 1e30), out, resume=True, quiet=True)
    assert max(saved(out)) == 32 and checkpoint.read_model(out)[0]["digest"] == before


@pytest.mark.parametrize("rate", [1e38, -1.0, float("nan"), float("inf")])
def test_rates_that_no_optimiser_can_take_are_refused(rate: float) -> None:
    with pytest.raises(LimnerError, match="lr"):
        toolkit.train(
            "vae", "digits", "nowhere", training={"optimisers": {"autoencoder": {"lr": rate}}}, quiet=True
        )


def test_which_states_are_sane() -> None:
    ones = torch.ones(3)
    live = {"model/a": ones, "optimiser/a.0.step": ones}
    assert not sanity.fault(live, {"a": ones}, 999.0, 0.1) and not sanity.fault(live, {"a": ones}, 4e3, 5.0)
    assert "held-out loss was 1.01e+03" in sanity.fault(live, {"a": ones}, 1010.0, 0.1)
    assert "loss was nan" in sanity.fault(live, {"a": ones}, float("nan"), float("nan"))
    assert not sanity.fault(live, {"a": ones}, float("nan"), float("inf")), "the first state is kept"
    bad = torch.tensor([1.0, float("nan")])
    assert "weights held" in sanity.fault({**live, "model/a": bad}, {}, 1.0, 1.0)
    assert "optimiser held" in sanity.fault({**live, "optimiser/a.0.step": bad}, {}, 1.0, 1.0)
    assert "moving average held" in sanity.fault(live, {"a": -bad / 0}, 1.0, 1.0)


def test_a_state_that_is_not_finite_returns_to_the_last_sane_one(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Loop.take_step

    def spoil(self: Loop, progress: float) -> Any:
        terms = step(self, progress)
        if self.seen == 32 and not self.rollbacks:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("inf"))
        return terms

    monkeypatch.setattr(Loop, "take_step", spoil)
    assert train(run_of(pictures, "64img"), tmp_path / "run", quiet=True).seen == 64
    resumed = checkpoint.resume(tmp_path / "run")
    assert resumed and resumed.state["rollbacks"] == 1 and saved(tmp_path / "run") == [48, 64]


def test_the_measure_of_sanity_changes_nothing(pictures: Path, tmp_path: Path) -> None:
    """Saves at every step and at none: the same weights."""
    for name, every in (("often", "8img"), ("never", "1h")):
        train(run_of(pictures, "40img", "dcgan", save_every=every, average=0.0), tmp_path / name, quiet=True)
    often, never = (checkpoint.resume(tmp_path / name) for name in ("often", "never"))
    assert often and never
    assert [n for n, x in never.live_tensors.items() if not torch.equal(x, often.live_tensors[n])] == []


# ---- damaged logs and settings

DAMAGE = {
    "not utf-8": b"\xff\xfe\n",
    "number": b"5\n",
    "null": b"null\n",
    "deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"\n",
    "missing fields": b'{"step": 3}\n',
    "seen of another type": b'{"seen": "many", "step": 3, "seconds": 1.0}\n',
    "held-out loss without a time": b'{"seen": 8, "held_out/vae/x": 1.0}\n',
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_log_is_set_aside(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = b'{"seen": 8, "step": 0, "seconds": 1.0, "rate": null, "vae/x": NaN}\n'
    (tmp_path / "log.jsonl").write_bytes(good + DAMAGE[kind] + good + b'{"seen": 16, "st')
    for i in ("", ".2"):
        with Journal(tmp_path) as journal:
            journal.rewind(8)
        assert "was set aside" in " ".join(capsys.readouterr().err.split())
        assert [line["seen"] for line in read_log(tmp_path)] == [8, 8]
        assert (tmp_path / f"log.jsonl.damaged{i}").read_bytes().count(DAMAGE[kind]) == 1
        (tmp_path / "log.jsonl").write_bytes(good + DAMAGE[kind] + good)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_log_that_is_damage_alone_is_set_aside(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = DAMAGE[kind].removesuffix(b"\n")  # without the end of a line, as an editor may leave it
    (tmp_path / "log.jsonl").write_bytes(content)
    with Journal(tmp_path) as journal:
        journal.rewind(8)
    assert "was set aside" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "log.jsonl.damaged").read_bytes() == content and not read_log(tmp_path)


def test_an_unfinished_last_line_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").write_text('{"seen": 8, "skipped": "a\u2028b"}\n{"seen": 16, "st')
    with Journal(tmp_path) as journal:
        journal.rewind(8)
    assert not capsys.readouterr().err and len(read_log(tmp_path)) == 1


@pytest.mark.parametrize("content", [*DAMAGE.values(), b"", b'{"format": 3}', None])
def test_a_damaged_config_is_replaced_by_the_checkpoints(content: bytes | None, out: Path) -> None:
    before = config.read_run(out)
    if content is None:
        (out / "config.json").unlink()
    else:
        (out / "config.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"config\.json.* Using the settings in .*model\.safetensors"):
        given = parse_train(["vae", "--out", str(out), "--resume"])
    assert given.run == before
    train(given.run, out, resume=True, quiet=True)
    assert config.read_run(out) == before


def test_a_damaged_config_without_a_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("5")
    with pytest.raises(LimnerError, match=r"config.json is damaged.* remove the file to begin"):
        parse_train(["vae", "--out", str(tmp_path), "--resume"])


@pytest.mark.parametrize("kind", ["int8", "bool", "complex64", "a number"])
def test_a_moment_of_another_type_or_shape_is_refused(kind: str) -> None:
    module = torch.nn.Linear(3, 2)
    optimiser = make_optimiser(module, Optimiser())
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    tensors, packed = pack_state(optimiser.state_dict(), "optimiser")
    load_state(optimiser, tensors, packed, "network")
    name = "optimiser.state.0.exp_avg"
    tensors[name] = torch.tensor(1.0) if kind == "a number" else tensors[name].to(getattr(torch, kind))
    with pytest.raises(LimnerError, match="optimiser of 'network' is not one of AdamW"):
        load_state(optimiser, tensors, packed, "network")


# ---- resumes that change what they must not


@pytest.mark.parametrize("change", [{"holdout": 0.3}, {"holdout": 0.0}])
def test_another_split_is_refused_unless_asked_for(change: dict[str, Any], pictures: Path, out: Path) -> None:
    with pytest.raises(LimnerError, match=r"trained with --data.holdout 0.05.* --training.data_changed"):
        train(run_of(pictures, "40img", data=change), out, resume=True, quiet=True)
    assert (
        train(run_of(pictures, "40img", data=change, data_changed=True), out, resume=True, quiet=True).seen
        == 40
    )


def test_another_number_of_images_of_each_class_is_refused(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        paint(tmp_path / "images" / label, 10, seed=ord(label[0]))
    train(run_of(tmp_path / "images", "8img"), tmp_path / "run", quiet=True)
    with pytest.raises(LimnerError, match=r"trained with --data.per-class 0"):
        train(
            run_of(tmp_path / "images", "16img", data={"per_class": 4}),
            tmp_path / "run",
            resume=True,
            quiet=True,
        )


def test_a_split_that_differs_by_itself_is_refused(
    pictures: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limner.training.resuming.split_digest", lambda *_: "another")
    with pytest.raises(LimnerError, match="held-out images are not those of"):
        train(run_of(pictures, "40img"), out, resume=True, quiet=True)


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_another_optimiser_is_refused(name: Any, pictures: Path, out: Path) -> None:
    run = run_of(pictures, "40img")
    optimisers = {n: dataclasses.replace(o, name=name) for n, o in run.training.optimisers.items()}
    kind = {o.name for o in run.training.optimisers.values()}
    if name in kind:
        pytest.skip("it is this one")
    other = dataclasses.replace(run, training=dataclasses.replace(run.training, optimisers=optimisers))
    with pytest.raises(LimnerError, match=rf"\.name {kind.pop()}, so it cannot resume with {name}"):
        train(other, out, resume=True, quiet=True)


def test_settings_of_the_network_that_changed_are_named(pictures: Path, out: Path) -> None:
    run = run_of(pictures, "40img")
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, width=run.model.width * 2))
    with pytest.raises(
        LimnerError, match=rf"cannot resume with --model.width {run.model.width * 2} instead of"
    ):
        train(other, out, resume=True, quiet=True)


def test_changed_settings_of_an_optimiser_hold_after_a_resume(pictures: Path, out: Path) -> None:
    run = run_of(pictures, "40img")
    optimisers = {n: dataclasses.replace(o, betas=(0.5, 0.6)) for n, o in run.training.optimisers.items()}
    other = dataclasses.replace(run, training=dataclasses.replace(run.training, optimisers=optimisers))
    train(other, out, resume=True, quiet=True)
    assert "0.6" in json.dumps(checkpoint.resume(out).state["optimisers"])  # type: ignore[union-attr]


# ---- signals, and folders that go


FLAGS = ["--preset", "tiny", "--budget", "100000img", "--training.batch", "8", "--training.samples", "0",
         "--training.log-every", "1"]  # fmt: skip


def start(pictures: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "limner.cli", "train", "vae", str(pictures), "--out", str(out), *FLAGS]
    return subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's "&" ignores it
    )  # fmt: skip


def wait_for(there: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.005)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_first_step_leaves_nothing_behind(
    number: int, pictures: Path, tmp_path: Path
) -> None:
    process = start(pictures, tmp_path / "new" / "run")
    wait_for((tmp_path / "new" / "run" / ".lock").exists, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_a_signal_whose_exception_was_lost_still_ends_the_training(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stopped, "received", signal.SIGINT)
    with pytest.raises(Stopped):
        train(run_of(pictures, "80img"), tmp_path / "run", quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_a_closed_terminal_saves(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "limner.cli", "train", "vae", str(pictures), "--out", str(out), *FLAGS]
    child, terminal = pty.fork()
    if not child:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, command)
    wait_for(lambda: len(read_log(out)) > 3)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    assert max(saved(out)) >= 24


@pytest.mark.process
@pytest.mark.parametrize("how", ["renamed", "removed", "replaced"])
def test_a_run_whose_folder_goes_is_ended(how: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(pictures, out)
    wait_for(lambda: len(read_log(out)) > 3, process)
    out.rename(tmp_path / "other")
    if how == "removed":
        shutil.rmtree(tmp_path / "other")
    if how == "replaced":
        out.mkdir()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2 and "was renamed, moved or removed" in errors and "Traceback" not in errors
    if how == "replaced":  # a line of the log of the step under way, perhaps
        assert {path.name for path in out.iterdir()} <= {"log.jsonl"}
    else:
        assert not out.exists()
    if how != "removed":
        assert checkpoint.resume(tmp_path / "other")


def test_what_a_kill_leaves_is_cleared(pictures: Path, out: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = [f".{name}.{gone.pid}.tmp" for name in ("log.jsonl", "report.html", "config.json")]
    for name in names[:2]:
        (out / name).write_text("unfinished")
    (out / names[2]).mkdir()
    (out / names[2] / "config.json").write_text("unfinished")
    (out / "checkpoints" / ".tmp-40").mkdir()
    (out / ".mine.tmp").write_text("a person's own")
    train(run_of(pictures, "40img"), out, resume=True, quiet=True)
    hidden = sorted(path.name for path in out.rglob(".*"))
    assert hidden == [".lock", ".mine.tmp"]
