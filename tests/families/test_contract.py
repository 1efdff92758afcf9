"""The contract that every family keeps. A new file in limner/families is tested here without a change.

What only one family promises (its paper's arithmetic, its knobs) is tested in a file of its own.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limner
from limner import checkpoint, families
from limner.core import (
    Autoencodes,
    Batch,
    Canvas,
    Classifies,
    Condition,
    Describes,
    Draws,
    Generates,
    ImageSpec,
    Latent,
    Layered,
    LimnerError,
    Model,
    Objective,
    Training,
    Translates,
    given_pictures,
)
from limner.families._tokens import ConfiguredTokenizer
from limner.fields import from_json, to_json
from limner.networks.checks import SettingsError
from limner.training.journal import COUNTS
from tests.helpers import animate

FAMILIES = families.names()
CLASSES = ("cat", "dog", "owl")
CAPTIONS = ("a red circle", "two blue squares", "nothing at all", "一只猫")

every_family = pytest.mark.parametrize("family", [families.load(name) for name in FAMILIES], ids=FAMILIES)


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spec_for(family: type[Model], channels: int = 3, height: int = 16, width: int = 16) -> ImageSpec:
    """Small images, with the labels, captions and given pictures that the family can use."""
    return ImageSpec(
        channels,
        height,
        width,
        frames_of(family),
        classes=CLASSES if "label" in family.reads else (),
        captions="text" in family.reads,
        given=given_spec(family, channels, height, width),
    )


def frames_of(family: type[Model]) -> int:
    return 4 if family.video else 1


def given_spec(family: type[Model], channels: int, height: int, width: int) -> ImageSpec | None:
    """Of pictures that the data gives, unless the family makes them from its images."""
    from_data = {*family.given_by[:1]} - {"degraded"}
    return ImageSpec(channels, height, width) if from_data else None


def build(family: type[Model], spec: ImageSpec | None = None) -> Model:
    torch.manual_seed(0)
    model = families.build(
        family.family, family.presets["tiny"].model, spec or spec_for(family)
    ).requires_grad_(False)
    for name in model.frozen:
        acquaint(model.get_submodule(name), model.spec)
    return model


@torch.no_grad()
def acquaint(parent: nn.Module, spec: ImageSpec) -> None:
    """Show pictures to a tokenizer that stands for a trained one, or it has one code for all of them."""
    if isinstance(parent, ConfiguredTokenizer):
        for _ in range(30):
            parent.train().network(torch.rand(8, *spec.shape) * 2 - 1)
        parent.eval()


def batch_for(model: Model, size: int = 8) -> Batch:
    """Smooth random pictures with labels and captions."""
    return Batch(smooth(model.spec, [1], size), condition_for(model, size))


def smooth(spec: ImageSpec, seeds: list[int], each: int = 1) -> Tensor:
    """[N, C, H, W], or of clips [N, C, T, H, W], in [-1, 1]: ``each`` random pictures of every seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    channels = spec.channels * spec.frames
    coarse = torch.cat([torch.rand(each, channels, 4, 4, generator=g) for g in generators]) * 2 - 1
    large = nn.functional.interpolate(coarse, (spec.height, spec.width), mode="bilinear")
    return large.unflatten(1, spec.shape[:-2])


def condition_for(model: Model, size: int) -> Condition:
    spec = model.spec
    return Condition(
        size,
        image=smooth(spec.given, [2], size) if spec.given else None,
        label=torch.arange(size) % len(spec.classes) if spec.classes else None,
        text=[CAPTIONS[i % len(CAPTIONS)] for i in range(size)] if spec.captions else None,
    )


def play(model: Model, objective: Objective, batch: Batch, steps: int) -> None:
    """What the loop does for one player: only its submodule asks for gradients."""
    module = model.get_submodule(objective.trains)
    settings = type(model).presets["tiny"].training.optimisers[objective.trains]
    module.requires_grad_(True)
    optimiser = torch.optim.Adam(module.parameters(), settings.lr, settings.betas)
    for step in range(steps):
        model.advance(step * len(batch.image))
        torch.manual_seed(step)
        optimiser.zero_grad()
        objective.total(objective.loss(batch)).backward()
        optimiser.step()
    module.requires_grad_(False)


def loss_of(model: Model, number: int, batch: Batch) -> float:
    """The mean of an objective's loss over a few draws, always the same; the model stays as it is."""
    objective = copy.deepcopy(model).objectives()[number]
    total = 0.0
    for seed in range(8):
        torch.manual_seed(1000 + seed)
        with torch.no_grad():
            terms = objective.loss(batch)  # some families lower a loss of no slope, and show what falls
            total += sum(float(value) for name, value in terms.items() if name not in COUNTS)
    return total / 8


def trained(family: type[Model], spec: ImageSpec | None = None, steps: int = 10) -> Model:
    """Every objective has played for a few steps; ready to sample."""
    model = build(family, spec)
    batch = batch_for(model)
    for objective in model.objectives():
        play(model, objective, batch, steps)
    return model.eval()


def asked(model: Model, condition: Condition, seeds: list[int]) -> Condition:
    """The condition with the given pictures of the seeds, where the model makes its images from given ones."""
    if "given" not in model.follows or condition.image is not None:
        return condition
    given = smooth(model.spec.given or model.spec, seeds)
    if not model.spec.given:
        given = given_pictures(model, Batch(given, condition), Draws(seeds))
    return dataclasses.replace(condition, image=given)


def paint(model: Model, condition: Condition, seeds: list[int], **knobs: Any) -> Tensor:
    """Images of the seeds."""
    condition = asked(model, condition, seeds)
    return list(model.sample(condition, model.Sampling(**knobs), Draws(seeds)))[-1].picture()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def counts(model: Model) -> dict[str, int]:
    return {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}


# ---- what it says of itself


@every_family
def test_declares_itself(family: type[Model]) -> None:
    assert importlib.import_module(family.__module__).__doc__, "the file says what the family is"
    assert family.paper and family.about
    assert {"tiny", "small", "base", "paper"} <= family.presets.keys()
    assert ("given" in family.reads) == bool(family.given_by)
    assert ("degraded" in family.given_by) == hasattr(family, "degrade")
    assert family.reads <= {"given", *(f.name for f in dataclasses.fields(Condition))} - {"size"}
    assert dataclasses.is_dataclass(family.Config) and family.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert dataclasses.is_dataclass(family.Sampling)
    for config in configs_in(family.presets["tiny"].model):
        optional = {*getattr(config, "may_be_zero", ()), *getattr(config, "may_be_negative", ())}
        assert optional <= {field.name for field in dataclasses.fields(config)}
    family.Sampling()  # every knob has a default
    model = build(family)
    submodules = {name for name, _ in model.named_children()}
    assert {*family.averaged, *model.frozen} <= submodules
    assert not {*family.averaged} & {*model.frozen}
    for preset in family.presets.values():
        assert {o.trains for o in model.objectives()} == preset.training.optimisers.keys()


def configs_in(config: Any) -> Iterator[Any]:
    """The config and those inside it."""
    yield config
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from configs_in(value)


@every_family
def test_a_model_follows_what_its_class_reads_and_its_data_has(family: type[Model]) -> None:
    spec = spec_for(family)
    assert build(family).follows <= family.reads
    if spec.classes and spec.captions:
        spec = dataclasses.replace(spec, captions=False)
        assert "text" not in build(family, spec).follows and "label" in build(family, spec).follows
    with contextlib.suppress(LimnerError):  # a classifier needs classes, a translator given pictures
        assert not build(family, ImageSpec(3, 16, 16)).follows & {"label", "text"}


@every_family
def test_config_to_json_and_back(family: type[Model]) -> None:
    for preset in family.presets.values():
        assert from_json(family.Config, json.loads(json.dumps(to_json(preset.model)))) == preset.model
        assert from_json(Training, json.loads(json.dumps(to_json(preset.training)))) == preset.training


@every_family
def test_presets_are_counted_without_allocating(family: type[Model]) -> None:
    for preset in family.presets.values():
        height, width = preset.size or (32, 32)
        with torch.device("meta"):
            model = families.build(
                family.family, preset.model, spec_for(family, preset.channels or 3, height, width)
            )
        assert all(p.is_meta for p in model.parameters())
    with torch.device("meta"):
        tiny = family(family.presets["tiny"].model, spec_for(family))
    assert counts(tiny) == counts(build(family))


COUNTED = [(n, p) for n in FAMILIES for p, preset in families.load(n).presets.items() if preset.parameters]


@pytest.mark.parametrize(("name", "preset"), COUNTED)
def test_a_paper_preset_has_the_papers_size(name: str, preset: str) -> None:
    paper = families.load(name).presets[preset]
    assert paper.size and paper.channels
    classes = tuple(f"class {i}" for i in range(paper.classes))
    with torch.device("meta"):
        given = given_spec(families.load(name), paper.channels, *paper.size)
        spec = ImageSpec(
            paper.channels, *paper.size, frames_of(families.load(name)), classes, paper.captions, given
        )
        model = families.build(name, paper.model, spec)
    assert counts(model) == paper.parameters


@every_family
@pytest.mark.parametrize(
    "shape",
    [(3, 1, 1, 1), (1, 5, 7, 1), (4, 9, 40, 1), (3, 16, 16, 4)],
    ids="{0[0]}x{0[1]}x{0[2]}x{0[3]}".format,
)
def test_takes_an_odd_spec_or_says_why_not(family: type[Model], shape: tuple[int, int, int, int]) -> None:
    frames = max(shape[3], frames_of(family))
    spec = ImageSpec(*shape[:3], frames, given=given_spec(family, *shape[:3]))
    try:
        model = build(family, spec)
    except LimnerError as refusal:
        text = str(refusal)
        assert family.family in text
        assert text.endswith(".") and "\n" not in text and len(text) < 300
        assert ":" in text or "," in text, "it also says what to do"
        return
    assert spec.frames == 1 or family.video
    for objective in model.objectives():
        play(model, objective, batch_for(model), 1)
    model.eval()
    if isinstance(model, Generates):
        picture = paint(model, Condition(2), [0, 1])
        assert picture.shape == (2, *spec.shape) and picture.isfinite().all()
    if isinstance(model, Describes):
        assert model.features(batch_for(model).image).isfinite().all()


# ---- it trains


@every_family
def test_each_loss_falls_on_a_fixed_batch(family: type[Model]) -> None:
    """While the other players, if any, stand still."""
    for i in range(len(build(family).objectives())):
        model = build(family)
        objective, batch = model.objectives()[i], batch_for(model)
        before = loss_of(model, i, batch)
        play(model, objective, batch, 60)
        after = loss_of(model, i, batch)
        assert after < before - 0.05 * abs(before), f"{objective.trains}: {before:.4f} to {after:.4f}"


@every_family
def test_each_objective_moves_its_own_submodule_and_nothing_else(family: type[Model]) -> None:
    model = build(family)
    batch = batch_for(model)
    for objective in model.objectives():
        assert objective.trains not in model.frozen
        before = {name: p.clone() for name, p in model.named_parameters()}
        stages = {name: state(model.get_submodule(name)) for name in model.frozen}
        play(model, objective, batch, 5)
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        own = {name for name in before if name.startswith(f"{objective.trains}.")}
        assert moved <= own, f"{objective.trains} and {moved - own}"
        if (
            objective.every == 1
        ):  # a lazy regulariser has no slope to some biases, which the main objective moves
            assert moved == own, f"{objective.trains} and {own - moved}"
        assert moved
        assert all(same(state(model.get_submodule(name)), kept) for name, kept in stages.items())


@every_family
def test_losses_are_scalars_that_depend_on_the_global_seed_only(family: type[Model]) -> None:
    model = build(family)
    batch = batch_for(model)
    model.advance(0)
    for i, objective in enumerate(model.objectives()):
        torch.manual_seed(7)
        first = copy.deepcopy(model).objectives()  # a twin, for the moving statistics of some norms
        terms = first[i].loss(batch)
        torch.manual_seed(7)
        again = objective.loss(batch)
        assert terms.keys() == again.keys() and terms
        for name, value in terms.items():
            assert value.ndim == 0 and value.isfinite()
            assert torch.equal(value, again[name])


@every_family
def test_losses_survive_bf16(family: type[Model]) -> None:
    model = build(family)
    batch = batch_for(model)
    for i in range(len(model.objectives())):
        exact = loss_of(model, i, batch)
        with torch.autocast("cpu", torch.bfloat16):
            rough = loss_of(model, i, batch)
        assert rough == pytest.approx(exact, rel=0.05, abs=0.05)


# ---- it samples

generators = pytest.mark.parametrize(
    "family",
    [f for f in map(families.load, FAMILIES) if hasattr(f, "sample")],
    ids=[name for name in FAMILIES if hasattr(families.load(name), "sample")],
)


@generators
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 16), (12, 20)])
def test_samples_have_the_shape_and_range_of_the_data(
    family: type[Model], channels: int, height: int, width: int
) -> None:
    model = trained(family, spec_for(family, channels, height, width), steps=3)
    picture = paint(model, condition_for(model, 3), [0, 1, 2])
    assert picture.shape == (3, *model.spec.shape)
    assert (model.spec.channels, *model.spec.shape[-2:]) == (channels, height, width)
    assert picture.dtype == torch.float32
    assert picture.isfinite().all()
    assert picture.abs().max() <= 1
    assert not torch.allclose(picture[0], picture[1])


@generators
def test_an_image_depends_on_its_own_seed_only(family: type[Model]) -> None:
    model = trained(family)
    condition = condition_for(model, 4)
    together = paint(model, condition, [5, 6, 7, 8])
    torch.manual_seed(99)  # the global generator must not matter
    assert torch.equal(paint(model, condition, [5, 6, 7, 8]), together)
    for i, seed in enumerate([5, 6, 7, 8]):
        alone = paint(model, condition[i : i + 1], [seed])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


@generators
def test_an_image_can_be_sampled_without_a_condition(family: type[Model]) -> None:
    """With labels and captions in its data, and none asked for."""
    model = trained(family)
    together = paint(model, Condition(3), [1, 2, 3])
    assert together.isfinite().all()
    torch.testing.assert_close(paint(model, Condition(1), [2])[0], together[1], atol=1e-5, rtol=0)


@generators
def test_canvases_count_up_to_the_result(family: type[Model]) -> None:
    model = trained(family, steps=1)
    canvases: list[Canvas] = []
    for canvas in model.sample(
        asked(model, condition_for(model, 2), [0, 1]), model.Sampling(), Draws([0, 1])
    ):
        assert canvas.picture().shape == (2, *model.spec.shape)
        canvases.append(canvas)
    done = [c.done for c in canvases]
    assert done == sorted(set(done)) and done[-1] == canvases[-1].total
    assert {c.total for c in canvases} == {done[-1]}


@generators
@pytest.mark.parametrize("name", ["label", "text"])
def test_exactly_what_it_reads_changes_the_image(family: type[Model], name: str) -> None:
    spec = spec_for(family)
    spec = dataclasses.replace(spec, classes=CLASSES if name == "label" else (), captions=name == "text")
    model = trained(family, spec, steps=30)
    one, other = condition_for(model, 2)[0:1], condition_for(model, 2)[1:2]
    other = dataclasses.replace(other, image=one.image)
    assert getattr(one, name) is not None
    difference = (paint(model, one, [3]) - paint(model, other, [3])).abs().max()
    if name in family.reads:
        assert difference > 1e-4, f"{name} moves no pixel by more than {difference:.1e}"
    else:
        assert difference == 0, f"{name} is read but not declared"


# ---- what else it can do


@every_family
def test_capabilities(family: type[Model]) -> None:
    model = trained(family, steps=1)
    image = batch_for(model, 4).image
    abilities = Generates | Autoencodes | Describes | Classifies | Translates
    assert isinstance(model, abilities), "it can do something"
    with torch.no_grad():
        if isinstance(model, Autoencodes):
            code = model.encode(image)
            assert len(code) == 4 and model.decode(code).shape == image.shape
            assert model.decode(code).abs().max() <= 1
            torch.testing.assert_close(model.encode(image[2:3])[0], code[2], atol=1e-5, rtol=1e-5)
        if isinstance(model, Describes):
            features = model.features(image)
            assert features.ndim == 2 and len(features) == 4 and features.isfinite().all()
            torch.testing.assert_close(model.features(image[2:3])[0], features[2], atol=1e-5, rtol=1e-5)
        if isinstance(model, Classifies):
            assert model.classify(image).shape == (4, len(model.spec.classes))


@pytest.mark.parametrize("name", [name for name in FAMILIES if issubclass(families.load(name), Latent)])
def test_a_latent_determines_an_image(name: str) -> None:
    """What `limner explore` and `limner project` count on."""
    model = trained(families.load(name))
    condition = condition_for(model, 3)
    assert isinstance(model, Latent)
    with torch.no_grad():
        points = model.latent(condition, Draws([5, 6, 7]))
        alone = model.latent(condition[1:2], Draws([6]))
    assert points.ndim == 2 and len(points) == 3 and points.unique(dim=0).shape == points.shape
    torch.testing.assert_close(alone[0], points[1])
    points.requires_grad_()
    painted = model.paint(points, condition)
    assert painted.shape == (3, *model.spec.shape) and painted.abs().max() <= 1
    assert torch.equal(painted, model.paint(points, condition)), "an image is its point's alone"
    slope = torch.autograd.grad(painted.square().sum(), points)[0]
    assert slope.isfinite().all() and (slope.abs().amax(1) > 0).all()
    torch.testing.assert_close(model.paint(points[1:2], condition[1:2])[0], painted[1], atol=1e-5, rtol=1e-5)
    if isinstance(model, Layered):
        each = points[:, None].expand(-1, model.layers, -1)
        torch.testing.assert_close(model.paint(each, condition), painted, atol=1e-5, rtol=1e-5)


# ---- it is kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 labelled and captioned images of 16x16 pixels; beside it clips of 4 frames."""
    top = tmp_path_factory.mktemp("data")
    fill(top / "images", 1)
    fill(top / "clips", 4)
    return top / "images"


def fill(path: Path, frames: int) -> None:
    lines = []
    for i in range(24):
        animate(path / f"{i:02d}.png", frames, i)
        entry = {"file_name": f"{i:02d}.png", "label": CLASSES[i % 3], "text": f"a {CLASSES[i % 3]}, {i}"}
        lines.append(json.dumps(entry) + "\n")
    (path / "metadata.jsonl").write_text("".join(lines))


def train(name: str, folder: Path, out: Path, resume: bool = False) -> Any:
    """In float32: bf16, where a processor is quick at it, rounds otherwise for another size of batch."""
    settings = {
        "precision": "float32",
        "batch": 8,
        "samples": 2,
        "save_every": "1h",
        "sample_every": "1h",
        "evaluate_every": "1h",
    }
    frames = frames_of(families.load(name))
    folder = folder.parent / "clips" if frames > 1 else folder
    data = {"cache": str(folder.parent / "cache"), "holdout": 0.0, "frames": frames}
    needs_two = given_spec(families.load(name), 3, 16, 16)
    return limner.train(
        name,
        [folder, folder] if needs_two else folder,
        out,
        preset="tiny",
        budget="80img",
        quiet=True,
        resume=resume,
        training=settings,
        data=data,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_it_draws_the_same_images(name: str, folder: Path, tmp_path: Path) -> None:
    train(name, folder, tmp_path)
    one, other = limner.load(tmp_path), limner.load(tmp_path)
    assert one.model.config == families.load(name).presets["tiny"].model
    assert (one.spec.channels, one.spec.height, one.spec.width) == (3, 16, 16)
    assert not one.model.training
    assert same(state(one.model), state(other.model))
    if isinstance(one.model, Generates):
        asked = {"image": folder / "00.png"} if "given" in one.model.follows else {}
        pictures = one.tensors(3, seed=4, **asked)
        assert torch.equal(pictures, other.tensors(3, seed=4, **asked))
        torch.testing.assert_close(one.tensors(1, seed=5, **asked)[0], pictures[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_stopping_and_resuming_equals_not_stopping(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: live weights, moving average, optimisers, counters."""
    train(name, folder, tmp_path / "unbroken")

    family = families.load(name)
    advance = family.advance

    def stop_at_40(self: Model, seen: int) -> None:
        if seen == 40:
            signal.raise_signal(signal.SIGTERM)
        advance(self, seen)

    with monkeypatch.context() as patch:
        patch.setattr(family, "advance", stop_at_40)
        stopped = train(name, folder, tmp_path / "stopped")
    assert stopped.stopped == signal.SIGTERM and stopped.seen == 48, "the step is finished first"
    resumed = train(name, folder, tmp_path / "stopped", resume=True)
    assert resumed.seen == 80 and not resumed.stopped

    one, other = (checkpoint.resume(tmp_path / run) for run in ("unbroken", "stopped"))
    assert one and other
    assert same(one.model_tensors, other.model_tensors)
    assert same(one.live_tensors, other.live_tensors)
    assert any("optimiser" in key for key in one.live_tensors)
    assert counters(one.state) == counters(other.state)


def counters(state: dict[str, Any]) -> dict[str, Any]:
    """The counters of a checkpoint, without the clock."""
    return {key: value for key, value in state.items() if key != "seconds"}


@pytest.mark.parametrize("name", families.names())
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_settings_that_make_no_network_are_one_sentence(name: str) -> None:
    """Each number of the settings, and of those inside them, too small or not finite: refused by its name, or built."""
    given = given_spec(families.load(name), 3, 32, 32)
    spec = ImageSpec(3, 32, 32, frames_of(families.load(name)), classes=("a", "b"), given=given)
    for field, config in odd_settings(families.load(name).presets["tiny"].model):
        with torch.device("meta"):
            try:
                families.build(name, config, spec)
            except LimnerError as refusal:
                assert str(refusal).endswith(".") and "\n" not in str(refusal), field


def odd_settings(config: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, the settings with an odd number there)."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), where + field.name
        odd: tuple[Any, ...] = ()
        if dataclasses.is_dataclass(value):
            for below, inner in odd_settings(value, f"{path}."):
                yield below, dataclasses.replace(config, **{field.name: inner})
        elif type(value) is int:
            odd = (0, -1, 3)
        elif type(value) is float:
            odd = (-1.0, 0.0, 2.0, math.nan, math.inf)
        elif isinstance(value, tuple) and all(type(entry) is int for entry in value):
            odd = ((), (0,), (-1,), (3, 3, 3))
        for number in odd:
            yield path, dataclasses.replace(config, **{field.name: number})


def test_a_bug_is_not_reported_as_a_bad_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a family's own checks blame the person; what PyTorch or Python raises inside it stays a traceback."""
    family = families.load("vae")
    settings, spec = family.presets["tiny"].model, ImageSpec(3, 16, 16)

    def broken(error: Exception) -> Any:
        def __init__(self: Model, config: Any, spec: ImageSpec) -> None:
            raise error

        return __init__

    for bug in (ValueError("not enough values to unpack"), RuntimeError("shapes"), IndexError("range")):
        monkeypatch.setattr(family, "__init__", broken(bug))
        with pytest.raises(type(bug), match=str(bug)):
            families.build("vae", settings, spec)
    monkeypatch.setattr(family, "__init__", broken(SettingsError("a width of 3 is odd")))
    with pytest.raises(
        LimnerError, match=r"^vae cannot be built: a width of 3 is odd; change its --model settings\.$"
    ):
        families.build("vae", settings, spec)
