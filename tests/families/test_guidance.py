"""Guidance leads away from images without a condition: where training left none out, the scale is 1."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from limner import api, checkpoint, families
from limner.config import Run, write_run
from limner.core import Condition, DataOptions, Draws, ImageSpec, LimnerError, Model
from limner.diffusion.sampling import Drawing, SamplingConfig
from limner.evaluation.evaluate import evaluate
from limner.evaluation.options import EvaluateOptions
from limner.inference.pipeline import Pipeline, generate
from limner.synthesis.options import SynthesizeOptions
from limner.synthesis.synthesize import synthesize

LABELLED = ImageSpec(1, 16, 16, classes=("cat", "dog"))
GUIDED = [name for name in families.names() if issubclass(families.load(name).Sampling, SamplingConfig)]
DROPPING = [*GUIDED, "meanflow"]


def build(name: str, dropout: float, spec: ImageSpec = LABELLED, **changes: Any) -> Any:
    torch.manual_seed(0)
    family = families.load(name)
    model = family(
        dataclasses.replace(family.presets["tiny"].model, condition_dropout=dropout, **changes), spec
    )
    with torch.no_grad():  # many weights begin at 0
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def keep(model: Model, out: Path) -> Path:
    """A run of the model."""
    training = families.load(model.family).presets["tiny"].training
    run = Run(model.family, ("digits",), "tiny", (16, 16), "1img", 0, model.config, training, DataOptions())
    out.mkdir(parents=True)
    header = checkpoint.make_header(run, model.spec, 7)
    checkpoint.write_model(out / checkpoint.MODEL, model.state_dict(), header)
    write_run(out, run)
    return out


def scale(model: Any, **sampling: Any) -> float:
    options = model.Sampling(steps=2, **sampling)
    return Drawing(model, Condition(1, label=torch.tensor([0])), options, Draws([0])).guidance


@pytest.mark.parametrize("name", GUIDED)
def test_a_scale_is_refused_where_training_left_out_no_condition(name: str) -> None:
    always, sometimes = build(name, 0.0), build(name, 0.1)
    usual = always.Sampling.usual_guidance
    assert scale(sometimes) == usual > 1 == scale(always) == scale(always, guidance=1.0)
    assert scale(sometimes, guidance=3.0) == 3
    for wrong in (2.0, 0.5):
        with pytest.raises(LimnerError, match=f"--guidance {wrong:g}: .*condition-dropout"):
            scale(always, guidance=wrong)
    other = build(name, 0.0)
    other.load_state_dict(always.state_dict())
    assert scale(always, autoguidance=other) == usual, "another run needs no image without a condition"
    assert f"Default: {usual:g}, or 1 if" in inspect.getsource(type(always).Sampling) or usual == 2


@pytest.mark.parametrize("name", DROPPING)
def test_without_a_label_it_draws_one_where_training_left_none_out(name: str) -> None:
    model = build(name, 0.0)
    sampling, seeds = model.Sampling(steps=2), [3, 4, 5, 6]
    labels = Draws(seeds).integers(2)
    assert set(labels.tolist()) == {0, 1}
    drawing = generate(model, Condition(4), seeds, sampling)
    model_dropping = build(name, 0.1)
    plain = generate(model_dropping, Condition(4), seeds, dataclasses.replace(sampling, guidance=1.0))
    assert (drawing - plain).abs().max() > 1e-4


def test_meanflow_learns_no_scale_without_dropout() -> None:
    with pytest.raises(LimnerError, match=r"condition-dropout 0.*set the dropout above 0"):
        build("meanflow", 0.0, guidance=3.0).objectives()
    assert (
        build("meanflow", 0.1, guidance=3.0).objectives()
        and build("meanflow", 0.0, guidance=1.0).objectives()
    )
    earlier = build("meanflow", 0.0, guidance=3.0)  # trained when that was not refused
    with pytest.raises(LimnerError, match="guidance from 1 to 1"):
        generate(earlier, Condition(1), [0], earlier.Sampling(guidance=2.0))


def test_a_run_without_conditions_refuses_guidance(tmp_path: Path) -> None:
    run = keep(build("edm", 0.1, ImageSpec(1, 16, 16)), tmp_path / "run")
    assert Pipeline(run).named_sampling({}).guidance == 1.0
    with pytest.raises(
        LimnerError, match=r"neither prompts nor labels, so --guidance 2 .*leave --guidance out"
    ):
        Pipeline(run).sample(1, steps=2, guidance=2.0)
    Pipeline(run).sample(1, steps=2, guidance=1.0)


def test_every_way_to_draw_refuses_it_and_records_one(tmp_path: Path) -> None:
    run = keep(build("edm", 0.0, ImageSpec(1, 16, 16, classes=tuple("0123456789"))), tmp_path / "run")
    plain = Pipeline(run).tensors(2, label="1", steps=2)
    assert torch.equal(plain, Pipeline(run).tensors(2, label="1", steps=2, guidance=1.0))
    wrong = {"steps": 2, "guidance": 1.5}
    for draw in (
        lambda: Pipeline(run).sample(1, **wrong),
        lambda: api.load(run).sample(1, **wrong),
        lambda: evaluate(run, ["digits"], EvaluateOptions(n=20), quiet=True, **wrong),
        lambda: synthesize(run, tmp_path / "folder", SynthesizeOptions(n=2), quiet=True, **wrong),
    ):
        with pytest.raises(LimnerError, match=r"--guidance 1\.5"):
            draw()
    made = synthesize(run, tmp_path / "folder", SynthesizeOptions(n=2), quiet=True, steps=2)
    assert made.settings["sampling"]["guidance"] == 1.0
    assert Pipeline(run).named_sampling({}).guidance == 1.0


def test_the_papers_edm_draws_without_guidance() -> None:
    EDM = families.load("edm")
    with torch.device("meta"):
        model = EDM(EDM.presets["paper"].model, ImageSpec(3, 32, 32, classes=("a", "b")))
    assert EDM.Sampling().guidance_for(model) == 1.0


def test_a_network_of_diffusers_has_no_null_label_unless_it_is_ours() -> None:
    DDPM = families.load("ddpm")
    config = DDPM.Config(
        network="ddpm",
        width=64,
        multiples=(1, 2),
        attention_resolutions=(8,),
        head_width=0,
        condition="label",
    )
    ours, scheduler = DDPM(config, LABELLED).to_diffusers()[1:]
    assert DDPM.from_diffusers([ours, scheduler]).config.condition_dropout == 0.1
    theirs = {name: value for name, value in ours.settings.items() if not name.startswith("_cond")}
    foreign = DDPM.from_diffusers([dataclasses.replace(ours, settings=theirs), scheduler])
    assert foreign.config.condition_dropout == 0.0
    wrong = dataclasses.replace(ours, settings=ours.settings | {"_condition_dropout": "much"})
    with pytest.raises(LimnerError, match="_condition_dropout is 'much'"):
        DDPM.from_diffusers([wrong, scheduler])


def test_the_command_refuses_it_in_one_sentence(tmp_path: Path, limner: Any) -> None:
    run = keep(build("flow", 0.0), tmp_path / "run")
    done = limner("sample", run, "--n", 1, "--steps", 1, "--guidance", 3, ok=False)
    assert done.returncode == 2
    assert "never left its condition out" in done.stderr and done.stderr.strip().count("\n") == 0
    limner("sample", run, "--n", 1, "--steps", 1, "--to", tmp_path / "x.png")
