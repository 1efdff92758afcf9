"""Numbers are checked by type and by bounds, in one place: from Python, from JSON and from the command line."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest

import limner
from limner import families
from limner.commands.options import parse
from limner.commands.train import parse_train
from limner.diffusion.sampling import SamplingConfig
from limner.evaluation.options import EvaluateOptions
from limner.fields import Bounds, Checked, check, from_json
from limner.inference.options import ExploreOptions, ProjectOptions, SampleOptions
from limner.settings import DataOptions, LimnerError, Optimiser, Training
from limner.synthesis.options import SynthesizeOptions
from tests.helpers import paint

WRONG = [
    (SamplingConfig, "guidance", math.nan, "--guidance nan is out of range: choose 0 to 1000."),
    (SamplingConfig, "guidance", math.inf, "--guidance inf is out of range: choose 0 to 1000."),
    (SamplingConfig, "guidance", "strong", "--guidance must be a number, not 'strong'."),
    (SamplingConfig, "steps", 0, "--steps 0 is out of range: choose 1 or more."),
    (SamplingConfig, "steps", 2.5, "--steps must be a whole number, not 2.5."),
    (SamplingConfig, "steps", True, "--steps must be a whole number, not True."),
    (SamplingConfig, "solver", "zzz", "--solver must be ancestral or ddim or"),
    (SamplingConfig, "eta", 1.5, "--eta 1.5 is out of range: choose 0 to 1."),
    (SamplingConfig, "strength", 0.0, "--strength 0.0 is out of range: choose above 0, up to 1."),
    (Optimiser, "lr", 1e38, "lr 1e+38 is out of range: choose 1e+30 or less."),
    (Optimiser, "lr", -1.0, "lr -1.0 is out of range"),
    (Optimiser, "betas", (0.9, 1.0), "betas 1.0 is out of range: choose 0 to below 1."),
    (Optimiser, "betas", (0.9,), "betas must be a list of 2 values"),
    (Training, "batch", 0, "--training.batch 0 is out of range: choose 1"),
    (Training, "warmup", -1, "--training.warmup -1 is out of range: choose 0"),
    (Training, "clip", math.nan, "--training.clip nan is out of range: choose 0 or more."),
    (Training, "precision", "float8", "--training.precision must be"),
    (DataOptions, "holdout", 1.0, "--data.holdout 1.0 is out of range: choose 0 to below 1."),
    (DataOptions, "channels", 2, "--data.channels must be"),
    (DataOptions, "given_size", (0, 8), "--data.given-size 0 is out of range: choose 1"),
    (SampleOptions, "batch", 0, "--batch 0 is out of range"),
    (SampleOptions, "seed", -1, "--seed -1 is out of range: choose 0"),
    (SampleOptions, "seed", 2**64, "--seed 18446744073709551616 is out of range"),
    (SampleOptions, "between", (1, -2), "--between -2 is out of range"),
    (ExploreOptions, "truncation", -1.0, "--truncation -1.0 is out of range: choose 0 to 100."),
    (ExploreOptions, "columns", 1, "--columns 1 is out of range: choose 2 to 1000."),
    (ProjectOptions, "rate", math.inf, "--rate inf is out of range"),
    (EvaluateOptions, "n", 0, "--n 0 is out of range: choose 1"),
    (SynthesizeOptions, "confidence", 0.0, "--confidence 0.0 is out of range: choose above 0, up to 1."),
]


@pytest.mark.parametrize(("options", "name", "value", "error"), WRONG)
def test_wrong_values_are_refused_from_python(options, name, value, error):
    with pytest.raises(LimnerError) as caught:
        options(**{name: value})
    assert error in str(caught.value)


def test_json_is_refused_alike():
    with pytest.raises(LimnerError, match="lr inf is out of range"):
        from_json(Optimiser, {"lr": math.inf})


def test_the_command_line_is_refused_alike():
    with pytest.raises(LimnerError, match=r"lr nan is out of range: choose 0 or more"):
        parse_train(["flow", "shapes", "--out", "x", "--training.optimisers.network.lr", "nan"])
    with pytest.raises(LimnerError, match="--seed -3 is out of range"):
        parse_train(["flow", "shapes", "--out", "x", "--seed=-3"])
    with pytest.raises(LimnerError, match=r"--share 2.0 is out of range: choose 0 to 1"):
        parse(Plain, ["--share", "2"], "x")


@dataclass(frozen=True)
class Plain:
    """Options that do not derive from Checked, as a newcomer may write them."""

    share: Annotated[float, Bounds(0, 1)] = 0.5  # of something
    empty: tuple[int, ...] = ()  # may be empty, and may hold 0
    full: tuple[int, ...] = (1, 2)  # may not


def test_bounds_that_follow_from_the_default():
    check(Plain(empty=(0, 3)), "--")
    for wrong, error in [
        (Plain(full=()), "--full is empty"), (Plain(full=(1, 0)), "--full 0 is out of range"),
        (Plain(empty=(-1,)), "--empty -1 is out of range"), (Plain(full=(2**40,)), "choose 1048576 or less"),
    ]:  # fmt: skip
        with pytest.raises(LimnerError, match=error):
            check(wrong, "--")


def test_numbers_of_numpy_and_paths_are_taken():
    chosen = SampleOptions(seed=np.int64(3), image=Path("a.png"), prompt=["a"])
    assert (chosen.seed, chosen.image, chosen.prompt) == (3, "a.png", ("a",))
    assert type(chosen.seed) is int
    sampling = SamplingConfig(guidance=np.float32(2), eta=1)
    assert type(sampling.guidance) is float and type(sampling.eta) is float


@pytest.mark.parametrize("name", families.names())
def test_every_sampling_number_has_bounds_that_refuse_nan(name):
    sampling = families.load(name).Sampling
    for field in dataclasses.fields(sampling):
        if isinstance(field.default, float):
            with pytest.raises(LimnerError, match="nan is out of range"):
                sampling(**{field.name: math.nan})


@dataclass(frozen=True)
class Owned(Checked):
    run: str = dataclasses.field(default="", metadata={"run": True})


def test_a_field_that_names_a_run_may_hold_the_run():
    run = object()
    assert Owned(run=run).run is run


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: limner.train("vae", folder, folder / "run", size=0),
        lambda folder: limner.train("vae", folder, folder / "run", size={}),
        lambda folder: limner.train("vae", folder, folder / "run", training=5),
        lambda folder: limner.train("vae", folder, folder / "run", training=[]),
        lambda folder: limner.train("vae", folder, folder / "run", model={5: 5}),
        lambda folder: limner.train("vae", folder, folder / "run", preset=5),
        lambda folder: limner.train("vae", folder, folder / "run", resume="x"),
        lambda folder: limner.train(5, folder, folder / "run"),
        lambda folder: limner.train("vae", [5], folder / "run"),
        lambda folder: limner.train("vae", None, folder / "run"),
        lambda folder: limner.train("vae", folder, None),
        lambda folder: limner.open_data(5),
        lambda folder: limner.open_data(folder, size=16),
        lambda folder: limner.open_data(folder, size=(16.0, 16)),
        lambda folder: limner.open_data(folder, options=5),
        lambda folder: limner.load(None),
        lambda folder: limner.load(folder, device=5),
    ],
)
def test_wrong_arguments_of_the_three_functions_are_one_sentence(call, tmp_path):
    paint(tmp_path, 8)
    with pytest.raises(LimnerError, match=r"must be|is not a setting|is out of range"):
        call(tmp_path)
    assert not (tmp_path / "run").exists()


def test_zero_has_a_meaning_where_the_help_says_so():
    assert families.load("biggan").Sampling(standing=0).standing == 0
