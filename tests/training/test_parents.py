"""The networks of other runs inside a model: copied in once, and trained first if no run is named."""

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
from limner.config import Run, find_preset, read_run
from limner.core import DataOptions, LimnerError, Training
from limner.evaluation.evaluate import EvaluateOptions, evaluate
from limner.training import parents, session
from tests.helpers import paint

QUICK = {"batch": 8, "samples": 2, "save_every": "1h", "sample_every": "1h", "evaluate_every": "1h"}
QUIET = {"preset": "tiny", "quiet": True, "training": QUICK}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("pictures"), 24)


@pytest.fixture(scope="module")
def parent(pictures, tmp_path_factory) -> Path:
    """A run of autoencoder with a shape of its own, unlike the tiny preset's."""
    out = tmp_path_factory.mktemp("parent") / "ae"
    model = {"width": 16, "latent": 2, "adversarial": 0.0}
    toolkit.train("autoencoder", pictures, out, budget="80img", model=model, **QUIET)
    return out


def train(pictures: Path, out: Path, parent: Path | str = "", budget: str = "48img", **options):
    model = {"autoencoder": str(parent)} if parent else {}
    return toolkit.train("latent", pictures, out, budget=budget, **{**QUIET, **options}, model=model)


def codec(tensors: dict) -> dict:
    return {name: value for name, value in tensors.items() if name.startswith("autoencoder.")}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_named_parent_is_copied_in_and_never_changes(pictures, parent, tmp_path):
    train(pictures, tmp_path / "run", parent)
    header, weights = checkpoint.read_model(tmp_path / "run")
    parent_header, parent_weights = checkpoint.read_model(parent)
    assert codec(weights) and same(codec(weights), codec(parent_weights)), "bit for bit"
    live = checkpoint.resume(tmp_path / "run").live_tensors
    assert same(codec(weights), codec({name.removeprefix("model/"): value for name, value in live.items()}))
    assert header["parents"] == {"autoencoder": parent_header["digest"]}
    settings = read_run(tmp_path / "run").model
    assert settings.codec == read_run(parent).model and settings.codec.width == 16
    assert not any("discriminator" in name for name in weights), "what only its training needs stays behind"
    assert any(not torch.equal(weights[n], live[f"model/{n}"]) for n in weights if n.startswith("network."))
    assert not any(name.startswith("optimiser/autoencoder") for name in live)


def test_the_average_shares_the_parent(pictures, parent, tmp_path, monkeypatch):
    loops = []

    class Spy(session.Loop):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            loops.append(self)

    monkeypatch.setattr(session, "Loop", Spy)
    train(pictures, tmp_path / "run", parent)
    (one,) = loops
    assert one.average is not one.model and one.average.autoencoder is one.model.autoencoder
    assert one.average.network is not one.model.network
    assert not one.model.autoencoder.training and one.model.network.training
    assert not any(p.requires_grad for p in one.model.autoencoder.parameters())


def test_the_checkpoint_stands_alone(pictures, parent, tmp_path):
    shutil.copytree(parent, tmp_path / "ae")
    train(pictures, tmp_path / "run", tmp_path / "ae")
    shutil.rmtree(tmp_path / "ae")
    pipeline = toolkit.load(tmp_path / "run")
    drawn = pipeline.tensors(3, seed=1, steps=4)
    assert drawn.shape == (3, 3, 16, 16) and drawn.isfinite().all()
    evaluate(
        tmp_path / "run",
        [str(pictures)],
        EvaluateOptions(n=20),
        to=tmp_path / "evaluation",
        quiet=True,
        steps=2,
    )
    assert (tmp_path / "evaluation" / "evaluation.json").exists()
    train(pictures, tmp_path / "run", tmp_path / "ae", budget="64img", resume=True)
    assert checkpoint.read_model(tmp_path / "run")[0]["seen"] == 64
    twin = copy.deepcopy(pipeline.model)
    assert same(twin.state_dict(), pipeline.model.state_dict())
    twin.train()
    assert twin.network.training and not twin.autoencoder.training


def test_without_a_name_one_is_trained_first(pictures, tmp_path):
    result = train(pictures, tmp_path / "run", budget="80img")
    assert result.seen == 80
    first, second = read_run(tmp_path / "run" / "autoencoder"), read_run(tmp_path / "run")
    assert first.family == "autoencoder" and first.preset == "tiny" and first.budget == "20img"
    assert first.model == second.model.codec == find_preset(families.load("autoencoder"), "tiny").model
    assert first.training.save_every == "1h" and first.training.optimisers.keys() == {
        "autoencoder",
        "discriminator",
    }
    assert (first.sources, first.size, first.seed, first.data) == (
        second.sources,
        second.size,
        second.seed,
        second.data,
    )
    assert second.model.autoencoder == "" and second.budget == "80img"
    header, weights = checkpoint.read_model(tmp_path / "run")
    parent_header, parent_weights = checkpoint.read_model(tmp_path / "run" / "autoencoder")
    assert header["parents"] == {"autoencoder": parent_header["digest"]} and parent_header["seen"] >= 20
    assert same(codec(weights), codec(parent_weights))
    toolkit.load(tmp_path / "run" / "autoencoder")  # a run like any other


def test_the_parent_is_built_by_the_settings_of_the_model(pictures, tmp_path):
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


def test_a_finished_parent_is_not_trained_again(pictures, tmp_path, monkeypatch):
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


def test_an_unsuited_parent_is_refused_in_one_sentence(pictures, parent, tmp_path):
    toolkit.train("vae", pictures, tmp_path / "vae", budget="8img", **QUIET)
    for other, options, why in (
        (tmp_path / "vae", {}, "one of vae, which has none: name a run of autoencoder or latent"),
        (parent, {"size": 24}, "3x24x24"),
        (parent, {"data": {"channels": 1}}, "1x16x16"),
    ):
        with pytest.raises(LimnerError, match=r"--model\.autoencoder") as refusal:
            train(pictures, tmp_path / "run", other, **options)
        text = str(refusal.value)
        assert why in text and text.endswith(".") and "\n" not in text and len(text) < 400
        assert not (tmp_path / "run").exists(), "nothing half-written is left"
    with pytest.raises(LimnerError, match="no run"):
        train(pictures, tmp_path / "run", tmp_path / "nowhere")


def test_what_the_model_refuses_shows_before_the_parent_is_trained(pictures, tmp_path):
    with pytest.raises(LimnerError, match="label"):
        toolkit.train(
            "latent", pictures, tmp_path / "run", budget="8img", model={"condition": "label"}, **QUIET
        )
    with pytest.raises(LimnerError, match="'5x' is not a valid budget"):
        train(pictures, tmp_path / "run", training={**QUICK, "sample_every": "5x"})
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_resume_as_another_family(pictures, parent):
    with pytest.raises(LimnerError, match="ae is a run of autoencoder, so it cannot resume as vae"):
        toolkit.train("vae", pictures, parent, budget="160img", resume=True, **QUIET)


def test_the_command_says_so_and_goes_on(pictures, tmp_path, capsys):
    def command(*arguments: object) -> str:
        assert run(list(map(str, arguments))) == 0
        printed = capsys.readouterr()
        return " ".join((printed.out if arguments[0] == "show" else printed.err).split())

    tiny = ("--preset", "tiny", "--training.samples", 2)
    printed = command("train", "latent", pictures, "--out", tmp_path / "run", *tiny, "--budget", "64img")
    assert (
        "training one first" in printed and "--model.autoencoder" in printed and "16img of 64img" in printed
    )
    command("train", "latent", "--out", tmp_path / "run", "--resume", "--budget", "96img")
    shown = json.loads(command("show", tmp_path / "run", "--json"))
    assert shown["seen"] >= 96 and shown["parents"].keys() == {"autoencoder"}
    parent = tmp_path / "run" / "autoencoder"
    other = ("--out", tmp_path / "other", "--budget", "32img", "--model.autoencoder", parent)
    assert "training one first" not in command("train", "latent", pictures, *tiny, *other)
    assert checkpoint.read_model(tmp_path / "other")[0]["parents"] == shown["parents"]
    assert not (tmp_path / "other" / "autoencoder").exists()


@pytest.mark.parametrize("budget", ["64img", "4s"])
def test_two_processes_train_both(pictures, tmp_path, budget):
    """Through torchrun: every process takes part in the parent, then in the model."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "limner.cli", "train",
        "latent", str(pictures), "--out", str(tmp_path / "run"), "--preset", "tiny", "--budget", budget,
        "--training.samples", "2",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    header, weights = checkpoint.read_model(tmp_path / "run")
    parent_header, parent_weights = checkpoint.read_model(tmp_path / "run" / "autoencoder")
    assert header["parents"] == {"autoencoder": parent_header["digest"]}
    assert header["seen"] == 64 if budget == "64img" else header["seconds"] >= 4, "one clock for all"
    assert same(codec(weights), codec(parent_weights))


# ---- a prior on a tokeniser on an autoencoder: toy families, the tokeniser's images of half the side


@pytest.fixture
def nested(monkeypatch) -> None:
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(Path(__file__).parent / "nested")])


def train_toy(pictures: Path, out: Path, budget: str = "48img", family: str = "toy_prior", **options):
    return toolkit.train(family, pictures, out, budget=budget, **{**QUIET, **options})


def stop_at(monkeypatch, family: str, at: int) -> None:
    """SIGTERM while ``family`` takes its step from ``at`` images seen on."""
    kind = families.load(family)

    def advance(self, seen: int) -> None:
        if seen == at:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(kind, "advance", advance)


def test_parents_are_trained_to_any_depth(nested, pictures, tmp_path):
    train_toy(pictures, tmp_path / "run")
    paths = {name: tmp_path / "run" / name for name in ("tokeniser", "tokeniser/autoencoder")}
    runs = {name: toolkit.load(path).loaded for name, path in paths.items()}
    top = toolkit.load(tmp_path / "run").loaded
    assert top.spec.shape == (3, 16, 16) and {run.spec.shape for run in runs.values()} == {(3, 8, 8)}
    assert [run.run.budget for run in runs.values()] == ["12img", "3img"], "a quarter of a quarter"
    assert top.header["parents"] == {"tokeniser": runs["tokeniser"].header["digest"]}
    tokeniser = top.model.tokeniser
    assert same(tokeniser.state_dict(), runs["tokeniser"].model.state_dict())
    assert same(tokeniser.autoencoder.state_dict(), runs["tokeniser/autoencoder"].model.state_dict())
    tokeniser = top.model.train().tokeniser
    assert not tokeniser.training and not tokeniser.autoencoder.training


@pytest.mark.parametrize("where", ["toy_autoencoder", "toy_tokeniser", "toy_prior"])
def test_interrupted_at_any_depth_it_equals_an_unbroken_run(nested, pictures, tmp_path, monkeypatch, where):
    train_toy(pictures, tmp_path / "unbroken", "400img")
    with monkeypatch.context() as patch:
        stop_at(patch, where, 8)
        stopped = train_toy(pictures, tmp_path / "run", "400img")
    assert stopped.stopped == signal.SIGTERM and stopped.seen == 16 and stopped.out == tmp_path / "run"
    begun = [
        p for p in (".", "tokeniser", "tokeniser/autoencoder") if checkpoint.exists(tmp_path / "run" / p)
    ]
    assert len(begun) == 1 + ["toy_autoencoder", "toy_tokeniser", "toy_prior"].index(where)
    assert train_toy(pictures, tmp_path / "run", "400img", resume=True).seen == 400
    for name in (".", "tokeniser", "tokeniser/autoencoder"):
        one, other = (checkpoint.resume(tmp_path / run / name) for run in ("unbroken", "run"))
        assert same(one.model_tensors, other.model_tensors) and same(one.live_tensors, other.live_tensors), (
            name
        )


def test_without_its_parents_it_draws_resumes_and_is_measured(nested, pictures, tmp_path):
    out = tmp_path / "run"
    train_toy(pictures, out)
    frozen = toolkit.load(out).model.tokeniser.state_dict()
    shutil.rmtree(out / "tokeniser")
    assert toolkit.load(out).tensors(3, seed=1).shape == (3, 3, 16, 16)
    assert train_toy(pictures, out, "64img", resume=True).terms, "held-out losses"
    assert same(toolkit.load(out).model.tokeniser.state_dict(), frozen)
    assert not (out / "tokeniser").exists()


def test_a_named_parent_and_one_below_it(nested, pictures, tmp_path):
    ae = train_toy(pictures, tmp_path / "ae", family="toy_autoencoder", size=8).out
    train_toy(pictures, tmp_path / "run", model={"tokens": tokens(autoencoder=str(ae))})
    assert not (tmp_path / "run" / "tokeniser" / "autoencoder").exists()
    model = toolkit.load(tmp_path / "run").model
    assert same(model.tokeniser.autoencoder.state_dict(), toolkit.load(ae).model.state_dict())
    train_toy(pictures, tmp_path / "other", model={"tokeniser": str(tmp_path / "run" / "tokeniser")})
    assert same(toolkit.load(tmp_path / "other").model.tokeniser.state_dict(), model.tokeniser.state_dict())


def test_a_parent_under_training_needs_its_own_no_more(nested, pictures, tmp_path, monkeypatch):
    ae = train_toy(pictures, tmp_path / "ae", family="toy_autoencoder", size=8).out
    model = {"tokens": tokens(autoencoder=str(ae))}
    with monkeypatch.context() as patch:
        stop_at(patch, "toy_tokeniser", 8)
        train_toy(pictures, tmp_path / "run", "100img", model=model)
    shutil.rmtree(ae)
    assert train_toy(pictures, tmp_path / "run", "100img", model=model, resume=True).seen >= 100


def tokens(**settings: object):
    return dataclasses.replace(families.load("toy_prior").presets["tiny"].model.tokens, **settings)


def test_what_cannot_be_is_refused_before_anything_is_trained(nested, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ae = train_toy(pictures, Path("ae"), family="toy_autoencoder", size=8).out
    large = train_toy(pictures, Path("large"), family="toy_autoencoder").out
    tokeniser = train_toy(pictures, Path("whole"), family="toy_tokeniser").out

    def refused(words: str, out: str = "run", training: dict = QUICK, **settings: object) -> None:
        with pytest.raises(LimnerError, match=words) as refusal:
            train_toy(pictures, Path(out), model=settings, training=training)
        text = str(refusal.value)
        assert text.endswith((".", "?")) and "\n" not in text and len(text) < 400
        assert not Path(out).exists()

    refused("no run and no model at nowhere", tokeniser="nowhere")
    refused(
        "one of toy_autoencoder, which has none: name a run of tokens or toy_tokeniser with",
        tokeniser=str(ae),
    )
    refused("on images of 3x8x8, and whole was trained on 3x16x16", tokeniser=str(tokeniser))
    refused("on images of 3x8x8, and large was trained on 3x16x16", tokens=tokens(autoencoder=str(large)))
    refused("one of toy_tokeniser", tokens=tokens(autoencoder=str(tokeniser)))
    refused("no run and no model at nowhere", tokens=tokens(autoencoder="nowhere"))
    refused("codes -1 is out of range", tokens=tokens(codes=-1))
    refused("toy_prior needs sides that 3 divides", factor=3)
    refused("to a multiple of 3", training={**QUICK, "accumulate": 3})
    refused("toy_prior has no optimiser for its submodule 'prior'", training={**QUICK, "optimisers": {}})
    refused("cannot build on run", tokeniser="run")
    shutil.move(
        ae, "moved"
    )  # the tokeniser's parent is gone; a new run of that name would be built on itself
    first = train_toy(
        pictures, Path("first"), family="toy_tokeniser", model={"autoencoder": "moved"}, size=8
    ).out
    shutil.rmtree("moved")
    refused("cannot build on first", out="moved", tokeniser=str(first))


def test_a_resumed_run_keeps_its_parents(nested, pictures, tmp_path):
    train_toy(pictures, tmp_path / "run")
    train_toy(pictures, tmp_path / "other", family="toy_tokeniser", size=8)
    before = toolkit.load(tmp_path / "run").model.tokeniser.state_dict()
    with pytest.raises(LimnerError, match=r"cannot resume with --model.tokeniser .*other"):
        train_toy(
            pictures, tmp_path / "run", "64img", resume=True, model={"tokeniser": str(tmp_path / "other")}
        )
    train_toy(pictures, tmp_path / "run", "64img", resume=True, model={"tokens": tokens(codes=3)})
    assert same(toolkit.load(tmp_path / "run").model.tokeniser.state_dict(), before)
    assert toolkit.load(tmp_path / "run").loaded.run.model.tokens.codes == 8


def test_a_parent_is_given_no_pictures_that_it_does_not_read(nested, pictures, tmp_path, monkeypatch):
    for name in ("toy_prior", "toy_autoencoder"):
        monkeypatch.setattr(families.load(name), "given_by", ("pairs", "domains"))
        monkeypatch.setattr(families.load(name), "reads", frozenset({"given"}))
    paint(tmp_path / "others", 5)
    for way in ("pairs", "domains"):
        out = tmp_path / way
        train_toy([tmp_path / "others", pictures], out, data={"given": way, "given_channels": 1})
        assert toolkit.load(out).spec.given.channels == 1
        for path in (out / "tokeniser", out / "tokeniser" / "autoencoder"):
            assert not read_run(path).data.gives and toolkit.load(path).spec.given is None
            assert read_run(path).sources == (str(pictures),)
    halves = {"size": 16, "data": {"halves": True}}
    train_toy(paint(tmp_path / "two", 20, (16, 32)), tmp_path / "cut", **halves)
    assert read_run(tmp_path / "cut" / "tokeniser").data.halves, "its files must be cut too"
    assert toolkit.load(tmp_path / "cut" / "tokeniser").spec.shape == (3, 8, 8)


def test_an_occupied_folder_of_a_parent_is_refused_first(nested, pictures, tmp_path):
    (tmp_path / "run").mkdir()
    train_toy(pictures, tmp_path / "run" / "tokeniser" / "autoencoder", family="toy_autoencoder", size=8)
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / "tokeniser" / ".lock").touch()
    with pytest.raises(LimnerError, match="autoencoder already holds a run: add --resume"):
        train_toy(pictures, tmp_path / "run")


@pytest.fixture
def four(nested, monkeypatch):
    """The tokeniser with four parents, a third of the budget each."""
    kind = families.load("toy_tokeniser")
    settings = [("autoencoder", str, ""), ("codes", int, 8)]
    codec = type(kind.presets["tiny"].model.codec)
    for i in range(3):
        settings.append((f"more{i}", str, ""))
    made = dataclasses.make_dataclass(
        "Four", [("codec", codec, dataclasses.field(default_factory=codec)), *settings], frozen=True
    )
    parent = dataclasses.replace(kind.parents["autoencoder"], share=1 / 3)
    monkeypatch.setattr(kind, "parents", {f"more{i}": parent for i in range(3)} | {"autoencoder": parent})
    monkeypatch.setattr(kind, "Config", made)
    preset = dataclasses.replace(kind.presets["tiny"], model=made())
    monkeypatch.setattr(kind, "presets", {"tiny": preset})
    return made


def test_parents_take_half_of_a_budget_of_time_at_most(four, pictures, tmp_path):
    result = train_toy(pictures, tmp_path / "run", "2s", family="toy_tokeniser")
    assert result.seen > 0 and not result.stopped and result.seconds >= 0.99
    header = checkpoint.read_model(tmp_path / "run")[0]
    assert set(header["parents"]) == {"autoencoder", "more0", "more1", "more2"}
    budgets = {read_run(tmp_path / "run" / name).budget for name in header["parents"]}
    assert budgets == {"0.250s"} and 2 <= header["seconds"] < 3.5


def test_a_run_keeps_its_share_whatever_its_parents_took(four, pictures, tmp_path):
    run = Run("toy_tokeniser", (str(pictures),), "tiny", None, "8s", 0, four(), Training(), DataOptions())
    assert parents.shares(run) == dict.fromkeys(("more0", "more1", "more2", "autoencoder"), 0.125)
    assert parents.own_budget(run, 1, 3.0) == (5.0, "seconds")
    assert parents.own_budget(run, 1, 100.0) == (4.0, "seconds"), "half of it, though they took more"
    named = dataclasses.replace(run, model=four(more0="a", more1="b", more2="c"))
    assert parents.shares(named) == {"autoencoder": 1 / 3} and parents.own_budget(named, 1, 8.0)[0] > 5
    assert parents.own_budget(dataclasses.replace(run, budget="100img"), 1, 9.0) == (100, "images")


def test_the_shortest_budget_still_takes_a_step(nested, pictures, tmp_path):
    result = train_toy(pictures, tmp_path / "run", "0.001s")
    assert result.seen >= 8
    for name in ("tokeniser", "tokeniser/autoencoder"):
        assert checkpoint.read_model(tmp_path / "run" / name)[0]["seen"] >= 8
