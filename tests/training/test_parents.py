"""A frozen network of another run inside a model: adopted once, never moved, and trained first where none is named."""

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import limner as toolkit
from limner import checkpoint, families
from limner.cli import run
from limner.config import find_preset, read_run
from limner.core import LimnerError
from limner.training import run as course
from tests.helpers import paint

QUICK = {"batch": 8, "samples": 2, "save_every": "1h", "sample_every": "1h", "evaluate_every": "1h"}
QUIET = {"preset": "tiny", "quiet": True, "training": QUICK}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("pictures"), 24)


@pytest.fixture(scope="module")
def stage(pictures, tmp_path_factory) -> Path:
    """A run of autoencoder with a shape of its own, so that it is told from the tiny preset."""
    out = tmp_path_factory.mktemp("stage") / "ae"
    model = {"width": 16, "latent": 2, "adversarial": 0.0}
    toolkit.train("autoencoder", pictures, out, budget="80img", model=model, **QUIET)
    return out


def train(pictures: Path, out: Path, stage: Path | str = "", budget: str = "48img", **options):
    model = {"autoencoder": str(stage)} if stage else {}
    return toolkit.train("latent", pictures, out, budget=budget, **{**QUIET, **options}, model=model)


def codec(tensors: dict) -> dict:
    return {name: value for name, value in tensors.items() if name.startswith("autoencoder.")}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_named_stage_is_copied_in_and_never_moves(pictures, stage, tmp_path):
    train(pictures, tmp_path / "run", stage)
    header, weights = checkpoint.read_model(tmp_path / "run")
    told, taken = checkpoint.read_model(stage)
    assert codec(weights) and same(codec(weights), codec(taken)), "bit for bit"
    live = checkpoint.resume(tmp_path / "run").live_tensors
    assert same(codec(weights), codec({name.removeprefix("model/"): value for name, value in live.items()}))
    assert header["parents"] == {"autoencoder": told["digest"]}
    settings = read_run(tmp_path / "run").model
    assert settings.codec == read_run(stage).model and settings.codec.width == 16
    assert not any("discriminator" in name for name in weights), "what only its training needs stays behind"
    assert any(not torch.equal(weights[n], live[f"model/{n}"]) for n in weights if n.startswith("network."))
    assert not any(name.startswith("optimiser/autoencoder") for name in live)


def test_the_average_shares_the_stage(pictures, stage, tmp_path, monkeypatch):
    loops = []

    class Spy(course.Loop):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            loops.append(self)

    monkeypatch.setattr(course, "Loop", Spy)
    train(pictures, tmp_path / "run", stage)
    (one,) = loops
    assert one.average is not one.model and one.average.autoencoder is one.model.autoencoder
    assert one.average.network is not one.model.network
    assert not one.model.autoencoder.training and one.model.network.training
    assert not any(p.requires_grad for p in one.model.autoencoder.parameters())


def test_the_checkpoint_stands_alone(pictures, stage, tmp_path):
    shutil.copytree(stage, tmp_path / "ae")
    train(pictures, tmp_path / "run", tmp_path / "ae")
    shutil.rmtree(tmp_path / "ae")
    pipeline = toolkit.load(tmp_path / "run")
    drawn = pipeline.tensors(3, seed=1, steps=4)
    assert drawn.shape == (3, 3, 16, 16) and drawn.isfinite().all()
    train(pictures, tmp_path / "run", tmp_path / "ae", budget="64img", resume=True)  # and so does training on
    assert checkpoint.read_model(tmp_path / "run")[0]["seen"] == 64
    twin = copy.deepcopy(pipeline.model)
    assert same(twin.state_dict(), pipeline.model.state_dict())
    twin.train()
    assert twin.network.training and not twin.autoencoder.training


def test_without_a_name_one_is_trained_first(pictures, tmp_path):
    result = train(pictures, tmp_path / "run", budget="80img")
    assert result.seen == 80
    first, told = read_run(tmp_path / "run" / "autoencoder"), read_run(tmp_path / "run")
    assert first.family == "autoencoder" and first.preset == "tiny" and first.budget == "20img"
    assert first.model == told.model.codec == find_preset(families.load("autoencoder"), "tiny").model
    assert first.training.save_every == "1h" and first.training.optimisers.keys() == {
        "autoencoder",
        "discriminator",
    }
    assert (first.sources, first.size, first.seed, first.data) == (
        told.sources,
        told.size,
        told.seed,
        told.data,
    )
    assert told.model.autoencoder == "" and told.budget == "80img"
    header, weights = checkpoint.read_model(tmp_path / "run")
    other, taken = checkpoint.read_model(tmp_path / "run" / "autoencoder")
    assert header["parents"] == {"autoencoder": other["digest"]} and other["seen"] >= 20
    assert same(codec(weights), codec(taken))
    toolkit.load(tmp_path / "run" / "autoencoder")  # a run like any other


def test_the_stage_is_built_as_the_model_was_asked_for(pictures, tmp_path):
    settings = dataclasses.replace(families.load("latent").presets["tiny"].model.codec, latent=5)
    toolkit.train("latent", pictures, tmp_path / "run", budget="16img", model={"codec": settings}, **QUIET)
    assert toolkit.load(tmp_path / "run").model.shape == (5, 4, 4)


def test_a_budget_of_time_is_for_both(pictures, tmp_path):
    result = train(pictures, tmp_path / "run", budget="2s")
    first = checkpoint.read_model(tmp_path / "run" / "autoencoder")[0]
    both = checkpoint.read_model(tmp_path / "run")[0]
    assert read_run(tmp_path / "run" / "autoencoder").budget == "0.500s" and first["seconds"] >= 0.5
    assert result.seconds == pytest.approx(both["seconds"] - first["seconds"])
    assert 2 <= both["seconds"] < 4
    state = checkpoint.resume(tmp_path / "run").state
    assert state["seconds"] == pytest.approx(result.seconds)
    again = train(pictures, tmp_path / "run", budget="2.5s", resume=True)  # more of it: for the model alone
    after = checkpoint.read_model(tmp_path / "run")[0]
    assert after["seconds"] - again.seconds == pytest.approx(first["seconds"])
    assert after["seconds"] >= 2.5 and after["parents"] == both["parents"]


@pytest.mark.parametrize("where", ["autoencoder", "latent"])
def test_interrupted_in_either_it_goes_on_and_equals_an_unbroken_run(pictures, tmp_path, monkeypatch, where):
    train(pictures, tmp_path / "unbroken", budget="96img")
    family = families.load(where)
    advance, at = family.advance, 16

    def stop(self, seen: int) -> None:
        if seen == at:
            signal.raise_signal(signal.SIGTERM)
        advance(self, seen)

    with monkeypatch.context() as patch:
        patch.setattr(family, "advance", stop)
        stopped = train(pictures, tmp_path / "run", budget="96img")
    assert stopped.stopped == signal.SIGTERM and stopped.seen == 24 and stopped.out == tmp_path / "run"
    assert checkpoint.exists(tmp_path / "run") == (where == "latent")
    with pytest.raises(LimnerError, match="--resume"):
        train(pictures, tmp_path / "run", budget="96img")
    done = train(pictures, tmp_path / "run", budget="96img", resume=True)
    assert done.seen == 96 and not done.stopped
    one, other = (checkpoint.resume(tmp_path / name) for name in ("unbroken", "run"))
    assert same(one.model_tensors, other.model_tensors) and same(one.live_tensors, other.live_tensors)


def test_a_stage_that_is_done_is_not_trained_again(pictures, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def broken(self, seen: int) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(families.load("latent"), "advance", broken)
        with pytest.raises(RuntimeError):
            train(pictures, out)
    assert checkpoint.exists(out / "autoencoder") and read_run(out).family == "latent"
    before = checkpoint.read_model(out / "autoencoder")[0]
    assert train(pictures, out, resume=True).seen == 48
    assert checkpoint.read_model(out / "autoencoder")[0] == before
    assert checkpoint.read_model(out)[0]["parents"] == {"autoencoder": before["digest"]}


def test_what_is_no_such_stage_is_refused_in_one_sentence(pictures, stage, tmp_path):
    toolkit.train("vae", pictures, tmp_path / "vae", budget="8img", **QUIET)
    for other, options, why in (
        (tmp_path / "vae", {}, "one of vae"),
        (stage, {"size": 24}, "3x24x24"),
        (stage, {"data": {"channels": 1}}, "1x16x16"),
    ):
        with pytest.raises(LimnerError, match=r"--model\.autoencoder") as refusal:
            train(pictures, tmp_path / "run", other, **options)
        text = str(refusal.value)
        assert why in text and text.endswith(".") and "\n" not in text and len(text) < 400
        assert not (tmp_path / "run").exists(), "nothing half-written is left"
    with pytest.raises(LimnerError, match="no run"):
        train(pictures, tmp_path / "run", tmp_path / "nowhere")


def test_what_the_model_refuses_shows_before_the_stage_is_trained(pictures, tmp_path):
    with pytest.raises(LimnerError, match="label"):
        toolkit.train(
            "latent", pictures, tmp_path / "run", budget="8img", model={"condition": "label"}, **QUIET
        )
    assert not (tmp_path / "run").exists()


def test_the_command_says_so_and_goes_on(pictures, tmp_path, capsys):
    def command(*arguments: object) -> str:
        assert run(list(map(str, arguments))) == 0
        told = capsys.readouterr()
        return " ".join((told.out if arguments[0] == "show" else told.err).split())

    tiny = ("--preset", "tiny", "--training.samples", 2)
    said = command("train", "latent", pictures, "--out", tmp_path / "run", *tiny, "--budget", "64img")
    assert "training one first" in said and "--model.autoencoder" in said and "16img of 64img" in said
    command("train", "latent", "--out", tmp_path / "run", "--resume", "--budget", "96img")
    told = json.loads(command("show", tmp_path / "run", "--json"))
    assert told["seen"] >= 96 and told["parents"].keys() == {"autoencoder"}
    stage = tmp_path / "run" / "autoencoder"
    other = ("--out", tmp_path / "other", "--budget", "32img", "--model.autoencoder", stage)
    assert "training one first" not in command("train", "latent", pictures, *tiny, *other)
    assert checkpoint.read_model(tmp_path / "other")[0]["parents"] == told["parents"]
    assert not (tmp_path / "other" / "autoencoder").exists()


def test_two_processes_train_both(pictures, tmp_path):
    """Through torchrun: every process takes part in the stage, then in the model."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "limner.cli", "train",
        "latent", str(pictures), "--out", str(tmp_path / "run"), "--preset", "tiny", "--budget", "64img",
        "--training.samples", "2",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    header, weights = checkpoint.read_model(tmp_path / "run")
    other, taken = checkpoint.read_model(tmp_path / "run" / "autoencoder")
    assert header["seen"] == 64 and header["parents"] == {"autoencoder": other["digest"]}
    assert same(codec(weights), codec(taken))
