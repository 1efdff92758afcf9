"""Settings: to JSON and back, strictly; and from the command line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner import config, families
from limner.config import Budget, Run, from_json, parse_budget, parse_size, to_json
from limner.settings import DataOptions, LimnerError, Optimiser, Training


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(Path(__file__).parent / "toy")])


@pytest.fixture
def toy():
    return families.load("toy")


def a_run(toy: Any, **changes: Any) -> Run:
    module = __import__(toy.__module__, fromlist=["Stage"])
    stage = module.Stage(latent=7, rate=0.5)
    model = toy.Config(kind=3, rates=(1.0, 1e-300), stage=stage, maybe=stage, several={"a": stage})
    training = Training(optimisers={"generator": Optimiser(lr=0.1 + 0.2, betas=(0.0, 0.99))})
    run = Run(
        "toy", ("a folder", "shapes"), "tiny", (48, 64), "90s", 3, model, training, DataOptions(channels=4)
    )
    return dataclasses.replace(run, **changes)


# ---- families


def test_families_are_found_by_file_name():
    assert "toy" in families.names() and not any(name.startswith("_") for name in families.names())
    assert families.load("toy").__name__ == "Toy"
    with pytest.raises(LimnerError, match=r"no family 'toi'. Did you mean toy"):
        families.load("toi")
    with pytest.raises(LimnerError, match=r"There are .*toy"):
        families.load("../../etc/passwd")


# ---- JSON


def test_round_trip_is_exact(toy):
    run = a_run(toy)
    again = Run.from_json(json.loads(json.dumps(run.to_json())))
    assert again == run
    assert again.model.maybe.latent == 7 and isinstance(again.model.rates, tuple)
    assert again.training.optimisers["generator"].lr == 0.1 + 0.2
    without = a_run(toy, size=None, model=toy.Config())
    assert Run.from_json(json.loads(json.dumps(without.to_json()))) == without


def test_every_preset_round_trips():
    for name in families.names():
        for preset in families.load(name).presets.values():
            assert (
                from_json(type(preset.model), json.loads(json.dumps(to_json(preset.model)))) == preset.model
            )
            assert from_json(Training, json.loads(json.dumps(to_json(preset.training)))) == preset.training


@given(st.builds(Optimiser, lr=st.floats(allow_nan=False), betas=st.tuples(st.floats(0, 1), st.floats(0, 1))))
def test_numbers_survive_text(optimiser):
    assert from_json(Optimiser, json.loads(json.dumps(to_json(optimiser)))) == optimiser


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"widht": 3}, "model.widht is not a setting. Did you mean width?"),
        ({"stage": {"laten": 3}}, "model.stage.laten is not a setting. Did you mean latent or rate?"),
        ({"several": {"a": {"zzz": 1}}}, "model.several.a.zzz is not a setting. There are latent, rate."),
        ({"maybe": {"laten": 3}}, "model.maybe.laten is not a setting. Did you mean latent or rate?"),
        ({"width": "3"}, "model.width must be a whole number, not '3'."),
        ({"width": 3.0}, "model.width must be a whole number, not 3.0."),
        ({"width": True}, "model.width must be a whole number, not True."),
        ({"deep": 1}, "model.deep must be true or false, not 1."),
        ({"kind": "fanzy"}, "model.kind must be plain or fancy or 3, not 'fanzy'. Did you mean fancy?"),
        ({"kind": 3.0}, "model.kind must be plain or fancy or 3, not 3.0."),
        ({"rates": 0.1}, "model.rates must be a list, each entry a number, not 0.1."),
        ({"rates": [0.1, "x"]}, "model.rates[1] must be a number, not 'x'."),
        ({"pair": [1]}, "model.pair must be a list of 2 values, not [1]."),
        ({"stage": None}, "model.stage must be a table of settings, not None."),
        ({"stage": {"rate": "x"}}, "model.stage.rate must be a number or null, not 'x'."),
        ([], "model must be a table of settings, not []."),
    ],
)
def test_strict(toy, data, said):
    with pytest.raises(LimnerError) as error:
        from_json(toy.Config, data)
    assert str(error.value) == said


def test_whole_numbers_serve_as_numbers_and_defaults_fill_in(toy):
    read = from_json(toy.Config, {"rates": [1, 2], "stage": {"rate": 1}})
    assert (
        read.rates == (1.0, 2.0) and isinstance(read.rates[0], float) and isinstance(read.stage.rate, float)
    )
    assert read.width == toy.Config().width


def test_a_run_lacks_nothing(toy):
    data = a_run(toy).to_json()
    del data["seed"]
    with pytest.raises(LimnerError, match=r"run.seed is missing"):
        Run.from_json(data)
    with pytest.raises(LimnerError, match="no family"):
        Run.from_json(a_run(toy).to_json() | {"family": "tooy"})


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="set"):
        to_json({"a": {1, 2}})


# ---- budgets and sizes


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("4m", Budget(240, "seconds")),
        ("90s", Budget(90, "seconds")),
        ("1.5h", Budget(5400, "seconds")),
        ("200kimg", Budget(200_000, "images")),
        ("5000img", Budget(5000, "images")),
        ("50epochs", Budget(50_000, "images")),
        ("1epoch", Budget(1000, "images")),
        (" .5 EPOCHS ", Budget(500, "images")),
    ],
)
def test_budget(text, budget):
    assert parse_budget(text, epoch=1000) == budget


@pytest.mark.parametrize(
    "text", ["", "4", "m", "-4m", "4 minutes", "0s", "4m30s", "1e3s", "nan s", "9" * 400 + "s"]
)
def test_budget_refused(text):
    with pytest.raises(LimnerError, match=r"write 90s, 4m, 1.5h, 200kimg or 50epochs"):
        parse_budget(text, epoch=1000)


def test_budget_share():
    assert Budget(60, "seconds").share(seconds=30, images=10**9) == 0.5
    assert Budget(1000, "images").share(seconds=10**9, images=1500) == 1.5


def test_size():
    assert parse_size("32") == (32, 32)
    assert parse_size("64x48") == parse_size(" 64 X 48 ") == parse_size("64×48") == (64, 48)
    for text in ("", "0", "x", "64x", "x48", "-3", "3.5", "64x48x3", "032", "9999999"):
        with pytest.raises(LimnerError, match="HEIGHTxWIDTH"):
            parse_size(text)


# ---- the command line


def test_train_starts_from_the_preset(toy):
    run, out, resume = config.parse_train(["toy", "a", "b", "--out", "runs/x", "--preset", "tiny"])
    preset = toy.presets["tiny"]
    assert (run.family, run.sources, run.preset, out, resume) == ("toy", ("a", "b"), "tiny", "runs/x", False)
    assert (run.model, run.training, run.data) == (preset.model, preset.training, DataOptions())


def test_flags_reach_every_setting(toy):
    argv = (
        "toy shapes --out x --preset=tiny --size 64x48 --seed 5 --budget 3epochs --model.width 6 --model.deep"
    )
    argv += " --model.rates 1 2 3 --model.stage.latent 9 --training.optimisers.generator.lr 3e-3"
    argv += (
        " --training.optimisers.discriminator.betas 0.5 0.9 --training.batch 7 --data.channels 1 --data.flip"
    )
    run = config.parse_train(argv.split()).run
    assert (run.size, run.seed, run.budget) == ((64, 48), 5, "3epochs")
    assert (run.model.width, run.model.deep, run.model.rates, run.model.stage.latent) == (
        6,
        True,
        (1, 2, 3),
        9,
    )
    assert run.training.batch == 7
    assert run.training.optimisers["generator"] == Optimiser(lr=3e-3)
    assert run.training.optimisers["discriminator"] == Optimiser(lr=4e-4, betas=(0.5, 0.9))
    assert run.data == DataOptions(channels=1, flip=True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("", "Name the family first"),
        ("--seed 3 toy", "Name the family first"),
        ("tooy shapes --out x", "Did you mean toy"),
        ("toy --out x", "Name what to train on"),
        ("toy shapes", "--out runs/toy"),
        ("toy shapes --out x --preset smal", "Did you mean small"),
        ("toy shapes --out x --size 3.5", "HEIGHTxWIDTH"),
        ("toy shapes --out x --budget 10", "no length of training"),
        ("toy --resume", "--out RUN --resume"),
        ("toy --out nothing/here --resume", "nothing/here holds no run"),
    ],
)
def test_mistakes_are_one_sentence(argv, said):
    with pytest.raises(LimnerError, match=said):
        config.parse_train(argv.split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model.widht 3", "--model.width"),
        ("--training.optimisers.generator.rl 3", "--training.optimisers.generator"),
        ("--training.batch many", "--training.batch"),
        ("--data.fit crup", "crop"),
    ],
)
def test_unusable_flags_exit_with_2_and_name_what_is_near(flags, said, capsys):
    with pytest.raises(SystemExit) as exit:
        config.parse_train(["toy", "shapes", "--out", "x", *flags.split()])
    told = capsys.readouterr()
    assert exit.value.code == 2 and said in told.out + told.err


def test_help_says_what_each_setting_does(capsys):
    with pytest.raises(SystemExit) as exit:
        config.parse_train(["toy", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0
    assert "--model.width INT" in told and "channels of the first layer (default: 8)" in told
    assert "--training.optimisers.generator.lr FLOAT" in told and "(default: 0.0002)" in told
    assert "--data.flip" in told and "also show every training image mirrored" in told
    assert "folder that the run is kept in" in told and "SOURCE..." in told


def test_resume_goes_on_with_the_saved_settings(toy, tmp_path):
    saved = a_run(toy, preset="tiny")
    config.write_run(tmp_path, saved)
    assert config.read_run(tmp_path) == saved and [p.name for p in tmp_path.iterdir()] == ["config.json"]
    argv = ["toy", "--out", str(tmp_path), "--resume"]
    assert config.parse_train(argv) == (saved, str(tmp_path), True)
    longer = config.parse_train([*argv, "--budget", "3m", "--training.keep", "5"]).run
    assert longer == dataclasses.replace(
        saved, budget="3m", training=dataclasses.replace(saved.training, keep=5)
    )  # fmt: skip
    with pytest.raises(LimnerError, match="cannot resume as toy from small"):
        config.parse_train([*argv, "--preset", "small"])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LimnerError, match="cannot be read as JSON"):
        config.parse_train(argv)


def test_families_command(toy):
    assert not config.parse_families([]).family and config.parse_families(["--json"]).json
    given = config.parse_families(
        ["toy", "--preset", "tiny", "--size", "32x16", "--channels", "1", "--classes", "5", "--model.deep"]
    )
    assert (given.family, given.preset, given.size, given.channels, given.classes) == (
        "toy",
        "tiny",
        "32x16",
        1,
        5,
    )
    assert given.model == dataclasses.replace(toy.presets["tiny"].model, deep=True)


def test_sample_command(toy):
    argv = "runs/x --n 3 --prompt red --prompt blue --label cat --seed 9 --guidance 3.5"
    given = config.parse_sample(argv.split(), toy.Sampling)
    assert (given.run, given.n, given.prompt, given.label, given.seed) == (
        "runs/x",
        3,
        ("red", "blue"),
        ("cat",),
        9,
    )
    assert given.sampling == toy.Sampling(guidance=3.5)
    with pytest.raises(SystemExit):
        config.parse_sample(["runs/x", "--guidanse", "3"], toy.Sampling)
