"""The only training loop: what moves, by how much, and that a resumed run equals an unbroken one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from limner import checkpoint, families
from limner.config import Run, find_preset
from limner.core import (
    Batch,
    Canvas,
    DataOptions,
    ImageSpec,
    LimnerError,
    Model,
    Objective,
    Optimiser,
    Parent,
    Training,
)
from limner.data import Data, open_data
from limner.distributed import Ranks, microbatch_size
from limner.inference.sheets import sample_grid
from limner.training.journal import Journal, read_log
from limner.training.loop import Loop, learning_rate_factor
from limner.training.run import train
from limner.training.session import ROLLBACKS, SKIPS_BEFORE_ROLLBACK
from tests.helpers import animate, paint

SPEC = ImageSpec(1, 4, 4)


def data(n: int = 10) -> Data:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)
    return Data(SPEC, "toy", pixels, np.arange(n), [f"{i}.png" for i in range(n)])


class Toy(Model):
    """Two players and a frozen parent; the second player is due every third step."""

    Config = dict
    averaged = ("first",)
    parents = {"stage": Parent(nn.Module, "a stage", config="stage", weights="stage", family="toy")}

    def __init__(self, config: Any = None, spec: ImageSpec = SPEC):
        super().__init__(config, spec)
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))
        self.second = nn.Linear(4, 1)
        self.stage = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))

    def objectives(self) -> list[Objective]:
        return [Objective("first", self.one), Objective("second", self.two, every=3)]

    def one(self, batch: Batch) -> dict[str, Tensor]:
        code = self.first(batch.image + 0.1 * torch.randn_like(batch.image))
        return {"square": (self.second(self.stage(code)) - 1).square().mean(), "size": code.square().mean()}

    def two(self, batch: Batch) -> dict[str, Tensor]:
        return {"abs": (self.second(self.first(batch.image).detach()) + 2).abs().mean()}


def settings(**changes: Any) -> Training:
    optimisers = {"first": Optimiser(lr=0.01), "second": Optimiser("sgd", lr=0.1, momentum=0.9)}
    base = Training(batch=4, optimisers=optimisers, schedule="constant", average=8, average_rampup=0,
                    precision="float32")  # fmt: skip
    return dataclasses.replace(base, **changes)


def loop_for(training: Training, n: int = 10, seed: int = 0, ranks: Ranks = Ranks()) -> Loop:  # noqa: B008
    run = Run("toy", ("x",), "tiny", (4, 4), "100img", seed, None, training, DataOptions())
    torch.manual_seed(0)
    return Loop(run, Toy(), data(n), torch.device("cpu"), ranks)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_each_turn_moves_its_own_submodule_and_a_parent_never_moves() -> None:
    loop = loop_for(settings())
    before = weights(loop.model)
    loop.take_step(0.0)  # step 0: both are due
    middle = weights(loop.model)
    loop.take_step(0.0)  # step 1: only the first
    after = weights(loop.model)
    moved = {name for name in after if not torch.equal(before[name], middle[name])}
    assert {"first.1.weight", "second.weight"} <= moved
    assert not any(name.startswith("stage") for name in moved)
    assert torch.equal(middle["second.weight"], after["second.weight"])
    assert not torch.equal(middle["first.1.weight"], after["first.1.weight"])
    assert all(p.grad is None for p in loop.model.parameters())
    assert not loop.model.stage.training and loop.model.first.training


def test_no_objective_may_train_a_parent() -> None:
    class Wrong(Toy):
        def objectives(self) -> list[Objective]:
            return [Objective("stage", self.one)]

    run = Run("toy", ("x",), "tiny", None, "1img", 0, None, settings(), DataOptions())
    with pytest.raises(ValueError, match="frozen parent"):
        Loop(run, Wrong(), data(), torch.device("cpu"), Ranks())


def test_the_average_follows_with_its_half_life() -> None:
    loop = loop_for(settings(average=8))  # a batch is half a half-life
    name = "first.1.weight"
    slow = loop.average.state_dict()[name].clone()
    for _ in range(3):
        loop.take_step(0.0)
        slow = slow.lerp(loop.model.state_dict()[name], 1 - 0.5**0.5)
    torch.testing.assert_close(loop.average.state_dict()[name], slow)
    # Buffers, and submodules that are not averaged, are those of the live model.
    for same in ("first.2.running_mean", "second.weight"):
        assert torch.equal(loop.average.state_dict()[same], loop.model.state_dict()[same])
    assert loop.average.stage is loop.model.stage


def test_the_average_warms_up() -> None:
    loop = loop_for(settings(average=1e9, average_rampup=1e-6))
    loop.take_step(0.0)
    live, slow = loop.model.state_dict(), loop.average.state_dict()
    torch.testing.assert_close(slow["first.1.weight"], live["first.1.weight"])


def test_the_average_begins_later() -> None:
    """As BigGAN's code: until then it is a copy of the weights."""
    loop = loop_for(settings(average=8, average_from=8))
    name = "first.1.weight"
    loop.take_step(0.0)
    slow = loop.model.state_dict()[name].clone()
    assert torch.equal(loop.average.state_dict()[name], slow)
    loop.take_step(0.0)
    slow = slow.lerp(loop.model.state_dict()[name], 1 - 0.5**0.5)
    torch.testing.assert_close(loop.average.state_dict()[name], slow)


def test_the_average_warms_up_by_its_updates() -> None:
    """As LitEma of latent diffusion: decay = min(decay, (1 + n) / (10 + n)) at the n-th update."""
    loop = loop_for(settings(average=60, average_warmup=True))
    name, limit = "first.1.weight", 0.5 ** (4 / 60)
    slow = loop.average.state_dict()[name].clone()
    decays = []
    for n in range(1, 250):
        decays.append(min(limit, (1 + n) / (10 + n)))
        loop.step, loop.seen = n, 4 * n
        loop._update_average()
        slow = slow.lerp(loop.model.state_dict()[name], 1 - decays[-1])
    assert decays[0] == 2 / 11 and decays[-1] == limit
    torch.testing.assert_close(loop.average.state_dict()[name], slow)


class Lazy(Toy):
    """A submodule with two objectives, the second due every other step; and a buffer of the model's own."""

    def __init__(self, config: Any = None, spec: ImageSpec = SPEC):
        super().__init__(config, spec)
        self.strength = nn.Buffer(torch.zeros(()))
        self.draws: dict[str, list[float]] = {"main": [], "lazy": []}

    def objectives(self) -> list[Objective]:
        return [Objective("first", self.main), Objective("first", self.penalty, every=2)]

    def main(self, batch: Batch) -> dict[str, Tensor]:
        self.draws["main"].append(torch.rand(()).item())
        self.strength += 1
        return {"size": self.first(batch.image).square().mean()}

    def penalty(self, batch: Batch) -> dict[str, Tensor]:
        self.draws["lazy"].append(torch.rand(()).item())
        self.strength += 100
        return {"size": 2 * self.first[1].weight.square().sum()}


def lazy_loop() -> Loop:
    run = Run("toy", ("x",), "tiny", (4, 4), "100img", 0, None, settings(), DataOptions())
    torch.manual_seed(0)
    return Loop(run, Lazy(), data(), torch.device("cpu"), Ranks())


def test_a_lazy_regulariser_takes_its_own_steps() -> None:
    loop = lazy_loop()
    reports = [loop.take_step(0.0) for _ in range(4)]
    assert [sorted(terms) for terms in reports[:2]] == [
        ["first 2/gradient", "first 2/size", "first/gradient", "first/size"],
        ["first/gradient", "first/size"],
    ]
    (optimiser,) = loop.optimisers.values()  # both share it
    assert {int(state["step"]) for state in optimiser.state.values()} >= {4 + 2}
    main, lazy = loop.model.draws["main"], loop.model.draws["lazy"]
    assert len(main) == 4 and len(lazy) == 2
    assert not set(main) & set(lazy), "each objective draws its own"
    assert set(loop.held_out_losses(loop.data)) == {"first/size", "first 2/size"}


def test_a_penaltys_step_moves_only_its_gradient() -> None:
    """The weight that only the main loss reaches stands still in the lazy turn."""
    loop = lazy_loop()
    loop.players = loop.players[1:]
    before = weights(loop.model)
    loop.take_step(0.0)
    after = weights(loop.model)
    moved = {name for name, _ in loop.model.named_parameters() if not torch.equal(before[name], after[name])}
    assert moved == {"first.1.weight"}


def test_a_models_own_buffer_is_followed_and_rehearsed() -> None:
    loop = lazy_loop()
    loop.estimate_cost()
    assert loop.model.strength == 0, "a rehearsal moves nothing"
    loop.take_step(0.0)
    assert loop.model.strength == loop.average.strength == 101


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(accumulate: int) -> None:
    """For a loss without draws or batch statistics."""
    loop = loop_for(settings(accumulate=accumulate))
    loop.model.first[2].eval()
    loop.model.one = None  # type: ignore[assignment]
    whole = loop_for(settings())
    for each in (loop, whole):
        each.model.eval()
        player = each.players[1]
        terms = each.accumulate_gradients(player, each.data.select(0, 4, 0))
        each.outcome = (terms["abs"], [p.grad.clone() for p in player.parameters])  # type: ignore[attr-defined]
    torch.testing.assert_close(loop.outcome[0], whole.outcome[0])  # type: ignore[attr-defined]
    torch.testing.assert_close(loop.outcome[1], whole.outcome[1])  # type: ignore[attr-defined]


def test_schedules() -> None:
    def rate(schedule: str, progress: float, seen: int = 10**6, **more: Any) -> float:
        run = Run("x", (), "", None, "", 0, None, settings(schedule=schedule, **more), DataOptions())
        return learning_rate_factor(run, seen, progress)

    assert rate("constant", 0.9) == 1
    assert [rate("linear", p) for p in (0, 0.25, 1.0, 1.1)] == [1, 0.75, 0, 0]
    assert [rate("linear", p, flat=0.5) for p in (0.2, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]
    assert [round(rate("cosine", p), 9) for p in (0, 0.5, 1)] == [1, 0.5, 0]
    assert rate("constant", 0, seen=0, warmup=8) == 0.5  # a batch of 4 is half the way up


def test_clipping() -> None:
    loop = loop_for(
        settings(clip=1e-3, optimisers={"first": Optimiser("sgd", lr=1.0), "second": Optimiser("sgd")})
    )
    before = weights(loop.model.first)
    loop.take_step(0.0)
    after = loop.model.first.state_dict()
    moved = sum(float((after[n] - before[n]).square().sum()) for n, _ in loop.model.first.named_parameters())
    assert math.sqrt(moved) == pytest.approx(1e-3, rel=1e-3)


def test_clipping_each_parameter() -> None:
    """As DINO's clip_gradients: each parameter's gradient has at most the norm ``clip``, whatever the others have."""
    sgd = {"first": Optimiser("sgd", lr=1.0), "second": Optimiser("sgd", lr=1.0)}
    free, clipped = (loop_for(settings(clip=clip, clip_each=True, optimisers=sgd)) for clip in (0.0, 0.1))
    before = weights(free.model.first)
    moved = []
    for loop in (free, clipped):
        loop.take_step(0.0)
        after = loop.model.first.state_dict()
        moved.append({n: before[n] - after[n] for n, _ in loop.model.first.named_parameters()})
    norms = [float(step.norm()) for step in moved[0].values()]
    assert max(norms) > 0.1 > min(norms) > 0, "one is clipped and one is not"
    for name, step in moved[0].items():
        torch.testing.assert_close(moved[1][name], step * min(1.0, 0.1 / (float(step.norm()) + 1e-6)))


def test_what_is_not_finite_moves_nothing() -> None:
    loop = loop_for(settings())
    loop.take_step(0.0)
    before, average = weights(loop.model), weights(loop.average)
    sick = loop.players[0].objective.loss
    object.__setattr__(loop.players[0].objective, "loss", lambda b: {"nan": sick(b)["size"] * math.nan})
    with pytest.raises(FloatingPointError, match=r"\d+\.png, \d+\.png"):
        loop.take_step(0.0)
    for name, value in loop.model.state_dict().items():  # batch statistics too
        assert torch.equal(value, before[name]), name
    assert all(torch.equal(v, average[k]) for k, v in loop.average.state_dict().items())
    assert loop.skipped == 1 and loop.seen == 8


def test_what_is_not_finite_leaves_the_turns_before_it_whole() -> None:
    """Weights that moved keep the buffers that moved with them."""
    loop, sound = loop_for(settings()), loop_for(settings())
    sound.players = sound.players[:1]
    sick = loop.players[1].objective.loss
    object.__setattr__(loop.players[1].objective, "loss", lambda b: {"nan": sick(b)["abs"] * math.nan})
    with pytest.raises(FloatingPointError, match="second"):
        loop.take_step(0.0)
    sound.take_step(0.0)
    for name, value in loop.model.state_dict().items():
        assert torch.equal(value, sound.model.state_dict()[name]), name


def test_what_is_shown_and_measured_is_of_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the images lie one class after another."""
    spec = dataclasses.replace(SPEC, classes=("cat", "dog"))
    sorted_by_class = dataclasses.replace(data(600), spec=spec, labels=np.arange(600) // 300)
    loop, seen = loop_for(settings()), []
    player = loop.model.one
    loop.average.one = lambda batch: (seen.extend(batch.condition.label.tolist()), player(batch))[1]  # type: ignore
    loop.held_out_losses(sorted_by_class)
    assert len(seen) == 256 and 96 < sum(seen) < 160
    captions_seen: list[list[str] | None] = []
    monkeypatch.setattr(
        "limner.inference.sheets.grid", lambda images, captions: captions_seen.append(captions)
    )
    tiny = families.load("flow").presets["tiny"]
    sample_grid(families.load("flow")(tiny.model, spec), sorted_by_class, 16)
    assert set(captions_seen[0] or ()) == {"cat", "dog"}


def test_batches_must_divide() -> None:
    assert microbatch_size(8, 2, Ranks(0, 2)) == 2
    with pytest.raises(LimnerError, match="multiple of 6"):
        microbatch_size(8, 3, Ranks(0, 2))


def test_the_trial_moves_nothing() -> None:
    loop = loop_for(settings())
    before = weights(loop.model)
    seconds, memory = loop.estimate_cost()
    assert seconds > 0 and memory > 0
    assert all(torch.equal(v, before[k]) for k, v in loop.model.state_dict().items())


def test_a_run_keeps_the_precision_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring moves nothing, and a resumed run goes on as it was trained, whatever is measured now."""
    answers = [True]

    def choose(device, precision, network, run):
        run(True)
        run(False)
        return answers.pop()

    monkeypatch.setattr("limner.training.loop.choose_bf16", choose)
    loop = loop_for(settings(precision="auto"))
    before = weights(loop.model)
    loop.decide_precision()
    loop.decide_precision()  # only once
    assert loop.in_bf16 and all(torch.equal(v, before[k]) for k, v in loop.model.state_dict().items())
    live, state = loop.state()
    header = {"model": {}}
    average = {k: v.clone() for k, v in loop.average.state_dict().items()}
    resumed = checkpoint.Resumed(header, average, live, state)
    other = loop_for(settings(precision="auto"))
    other.restore(resumed)
    other.decide_precision()  # there is no answer left
    assert other.in_bf16
    exact = loop_for(settings())
    exact.restore(resumed)
    assert exact.in_bf16 is None  # --training.precision float32 was asked for


# ---- whole runs, of every family


class Killed(BaseException):
    """As if the process had been killed: nothing in the loop may catch it."""


def run_for(name: str, folder: Path, budget: str, **training: Any) -> Run:
    tiny = families.load(name).presets["tiny"]
    changes = {
        "batch": 8,
        "schedule": "constant",
        "log_every": 1,
        "save_every": "40img",
        "samples": 4,
    } | training
    return Run(
        name, (str(folder),), "tiny", (16, 16), budget, 3, tiny.model,
        dataclasses.replace(tiny.training, **changes), DataOptions(flip=True),
    )  # fmt: skip


def losses(out: Path) -> list[dict[str, Any]]:
    quiet = {"seconds", "rate"}
    return [{k: v for k, v in line.items() if k not in quiet} for line in read_log(out) if "step" in line]


@pytest.mark.parametrize("name", families.names())
def test_a_killed_and_resumed_run_equals_an_unbroken_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: weights, average, optimisers and every step's losses, wherever it was killed."""
    torch.set_num_threads(1)
    images = tmp_path / "images"
    for i, label in enumerate(("cat", "dog")):
        paint(images / label, 20, seed=i)
        for number in range(20):
            animate(tmp_path / "clips" / label / f"{number}.png", 4, 20 * i + number)
    if (
        "text" in families.load(name).reads and "label" not in families.load(name).reads
    ):  # which need captions
        for path in images.glob("*/*.png"):
            path.with_suffix(".txt").write_text(f"{path.parent.name} {path.stem}", "utf-8")
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run = run_for(name, images, "120img", accumulate=2)
    if families.load(name).video:
        data = dataclasses.replace(run.data, frames=4)
        run = dataclasses.replace(run, sources=(str(tmp_path / "clips"),), data=data)
    if families.load(name).given_by[:1] in (("pairs",), ("domains",)):  # which need two sources
        for i, label in enumerate(("cat", "dog")):
            paint(tmp_path / "given" / label, 20, seed=2 + i)
        run = dataclasses.replace(run, sources=(str(tmp_path / "given"), str(images)))
    train(run, unbroken, quiet=True)
    step = Journal.step
    for kill in (3, 6, 11):  # before the first save, in an epoch's middle (38 images), and past its edge

        def until(self: Journal, seen: int, at: int, *rest: Any, kill: int = kill) -> None:
            if at == kill:
                raise Killed
            step(self, seen, at, *rest)

        monkeypatch.setattr(Journal, "step", until)
        with pytest.raises(Killed):
            train(run, broken, resume=broken.exists(), quiet=True)  # perhaps of a parent alone
    monkeypatch.setattr(Journal, "step", step)
    result = train(run, broken, resume=True, quiet=True)
    assert result.seen == 120 and result.stopped == 0
    assert losses(broken) == losses(unbroken)
    one, other = checkpoint.resume(unbroken), checkpoint.resume(broken)
    assert one and other and one.state["seen"] == other.state["seen"] == 120
    for a, b in ((one.model_tensors, other.model_tensors), (one.live_tensors, other.live_tensors)):
        assert a.keys() == b.keys()
        assert [n for n in a if not torch.equal(a[n], b[n])] == []
    assert json.dumps(one.state["optimisers"]) == json.dumps(other.state["optimisers"])


def test_a_run_keeps_what_it_says(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(
        run_for("vae", images, "160img", sample_every="64img", evaluate_every="64img"), out, quiet=True
    )
    assert result.seen == 160 and result.terms
    assert json.loads((out / "config.json").read_text())["family"] == "vae"
    log = read_log(out)
    assert [line["step"] for line in log if "step" in line] == list(range(20))
    assert any(name.startswith("held_out/") for line in log for name in line)
    pictures = [line["picture"] for line in log if "picture" in line]
    assert len(pictures) >= 2 and all((out / p).exists() for p in pictures)
    header, _ = checkpoint.read_model(out)
    assert header["seen"] == 160 and header["family"] == "vae"
    with pytest.raises(LimnerError, match="--resume"):
        train(run_for("vae", images, "160img"), out, quiet=True)


def test_returns_to_the_last_good_state_and_in_the_end_gives_up(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families.load("vae")
    objectives = family.objectives
    calls = {"sick": 0}

    def sick(self: Model) -> list[Objective]:
        (only,) = objectives(self)

        def loss(batch: Batch) -> dict[str, Tensor]:
            terms = only.loss(batch)
            if torch.is_grad_enabled() and calls["from"] <= calls["sick"] < calls["to"]:
                terms = {name: value * math.inf for name, value in terms.items()}
            calls["sick"] += torch.is_grad_enabled()
            return terms

        return [dataclasses.replace(only, loss=loss)]

    monkeypatch.setattr(family, "objectives", sick)
    calls |= {"from": 6, "to": 9}
    in_float32 = {"precision": "float32"}  # or calls that measure bf16 would count, too
    result = train(run_for("vae", images, "120img", **in_float32), tmp_path / "ok", quiet=True)
    resumed = checkpoint.resume(tmp_path / "ok")
    assert result.seen == 120 and resumed and resumed.state["rollbacks"] == 1
    calls |= {"sick": 0, "from": 8, "to": 10**9}
    with pytest.raises(LimnerError, match="learning rate"):
        train(run_for("vae", images, "120img", **in_float32), tmp_path / "bad", quiet=True)
    skipped = [line["skipped"] for line in read_log(tmp_path / "bad") if "skipped" in line]
    assert ".png" in skipped[0]
    assert len(skipped) == SKIPS_BEFORE_ROLLBACK * (ROLLBACKS + 1), "a return forgets none of them"


def test_a_return_leaves_no_trace_of_undone_steps_in_the_log(tmp_path: Path) -> None:
    with Journal(tmp_path, quiet=True) as journal:
        journal.log_every = 2
        journal.step(4, 0, 1.0, {"loss": torch.tensor(1.0)})
        journal.step(8, 1, 2.0, {"loss": torch.tensor(9.0)})
        journal.skipped(12, "bad.png")
        journal.rewind(4)
        assert journal._since == (4, 1.0)
        journal.step(8, 2, 3.0, {"loss": torch.tensor(2.0)})
    assert [line.get("loss", line.get("skipped")) for line in read_log(tmp_path)] == [1.0, "bad.png", 2.0]


def test_a_log_that_cannot_be_written_ends_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "samples").write_text("no folder")
    with Journal(tmp_path) as journal:
        journal.picture(0, Image.new("L", (4, 4)))
        journal.write({"seen": 1})
        journal.write({"seen": 2})
    assert [line["seen"] for line in read_log(tmp_path)] == [1, 2], "a sheet takes no lines with it"
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with Journal(tmp_path) as journal:
        journal.write({"seen": 1})
        journal.write({"seen": 2})
        journal.rewind(1)
    assert capsys.readouterr().err.count("training continues") == 2, "each journal says so once"


def test_a_run_is_kept_from_other_files(images: Path, tmp_path: Path) -> None:
    def refused(out: Path, words: str) -> None:
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with pytest.raises(LimnerError, match=words):
            train(run_for("vae", images, "40img"), out, quiet=True)
        assert sorted(path.name for path in tmp_path.rglob("*")) == before

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    refused(images, "folder of images itself")
    refused(images / ".", "folder of images itself")
    refused(tmp_path / "mine", "other files, such as config.json")
    refused(tmp_path / "mine" / "config.json", "choose another --out")
    (tmp_path / "mine" / "config.json").unlink()
    train(run_for("vae", images, "8img"), tmp_path / "mine", quiet=True)


def test_changed_data_is_noticed(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(run_for("vae", images, "40img"), out, quiet=True)
    (images / "000.png").unlink()
    with pytest.raises(LimnerError, match="data_changed"):
        train(run_for("vae", images, "80img"), out, resume=True, quiet=True)
    changed = run_for("vae", images, "80img", data_changed=True)
    assert train(changed, out, resume=True, quiet=True).seen == 80


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_images_than_a_batch(n: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    folder = paint(tmp_path / "few", n)
    result = train(run_for("vae", folder, "32img"), tmp_path / "run")
    assert result.seen == 32
    assert "fewer than a batch" in " ".join(capsys.readouterr().err.split())


def test_a_time_budget_ends_in_time(images: Path, tmp_path: Path) -> None:
    result = train(run_for("vae", images, "2s", schedule="linear"), tmp_path / "run", quiet=True)
    assert 2 <= result.seconds < 6 and result.seen > 0


def test_sheets_and_held_out_losses_show_all_classes(tmp_path: Path) -> None:
    """Files of one class lie together: the first few would be of one class alone."""
    for label in ("a", "b", "c", "d"):
        paint(tmp_path / "images" / label, 40, seed=ord(label))
    data = open_data(str(tmp_path / "images"), size=(16, 16), progress=False)
    labels: list[int] = []

    class Asked(families.load("dcgan")):  # type: ignore[misc]
        def sample(self, condition, sampling, draws):
            labels.extend(condition.label.tolist())
            yield Canvas(1, 1, lambda: torch.zeros(condition.size, *self.spec.shape))

    model = Asked(find_preset(families.load("dcgan"), "tiny").model, data.spec)
    assert sample_grid(model, data, 12) is not None and len(set(labels)) == 4
    assert sample_grid(model, data, 0) is None


def test_a_model_is_told_how_much_of_its_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each step; costs are estimated for the end, which costs most."""
    told: list[float] = []
    monkeypatch.setattr(Toy, "advance", lambda self, seen: told.append(self.progress))
    loop = loop_for(settings(batch=2))
    assert loop.model.progress == 1.0, "of a run that draws"
    loop.estimate_cost()
    rehearsals = len(told)
    assert rehearsals and set(told) == {1.0}
    for progress in (0.0, 0.25, 1.2):
        loop.take_step(progress)
    assert told[rehearsals:] == [0.0, 0.25, 1.0]
