"""The options of the commands, as the command line is parsed."""

import contextlib
import dataclasses
import pkgutil
import re

import pytest

from limner import cli, commands, config, families
from limner.cli import COMMANDS
from limner.commands import sample
from limner.commands.families import parse_families
from limner.commands.options import parse
from limner.commands.train import parse_train
from limner.settings import DataOptions, LimnerError, Optimiser
from tests.helpers import toy_run

pytestmark = pytest.mark.usefixtures("toy")


def test_train_starts_from_the_preset(toy):
    run, out, resume = parse_train(["toy", "a", "b", "--out", "runs/x", "--preset", "tiny"])
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
    run = parse_train(argv.split()).run
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
        ("", "The family comes first"),
        ("--seed 3 toy", "The family comes first"),
        ("tooy shapes --out x", "Did you mean toy"),
        ("toy --out x", "Name the images to train on"),
        ("toy shapes", "--out runs/toy"),
        ("toy shapes --out x --preset smal", "Did you mean small"),
        ("toy shapes --out x --size 3.5", "HEIGHTxWIDTH"),
        ("toy shapes --out x --budget 10", "not a valid budget"),
        ("toy --resume", "--out RUN --resume"),
        ("toy --out nothing/here --resume", "nothing/here holds no run"),
    ],
)
def test_mistakes_are_one_sentence(argv, said):
    with pytest.raises(LimnerError, match=said):
        parse_train(argv.split())


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
        parse_train(["toy", "shapes", "--out", "x", *flags.split()])
    shown = capsys.readouterr()
    assert exit.value.code == 2 and said in shown.out + shown.err


def test_help_says_what_each_setting_does(capsys):
    with pytest.raises(SystemExit) as exit:
        parse_train(["toy", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0
    assert "--model.width INT" in shown and "channels of the first layer (default: 8)" in shown
    assert "--training.optimisers.generator.lr FLOAT" in shown and "(default: 0.0002)" in shown
    assert "--data.flip" in shown and "also show every training image mirrored" in shown
    assert "folder for the run" in shown and "SOURCE..." in shown


def test_resume_begins_where_there_is_no_run(toy, tmp_path, capsys):
    """One command begins or goes on, as a launcher that restarts it needs."""
    argv = ["toy", "shapes", "--out", str(tmp_path / "new"), "--resume", "--seed", "5"]
    given = parse_train(argv)
    assert given.resume and given.run == parse_train([a for a in argv if a != "--resume"]).run
    assert f"{tmp_path / 'new'} holds no run yet: --resume begins one." in capsys.readouterr().out


def test_resume_uses_the_saved_settings(toy, tmp_path):
    saved = toy_run(toy, preset="tiny")
    config.write_run(tmp_path, saved)
    assert config.read_run(tmp_path) == saved and [p.name for p in tmp_path.iterdir()] == ["config.json"]
    argv = ["toy", "--out", str(tmp_path), "--resume"]
    assert parse_train(argv) == (saved, str(tmp_path), True)
    longer = parse_train([*argv, "--budget", "3m", "--training.keep", "5"]).run
    assert longer == dataclasses.replace(
        saved, budget="3m", training=dataclasses.replace(saved.training, keep=5)
    )  # fmt: skip
    with pytest.raises(LimnerError, match="cannot resume as toy from small"):
        parse_train([*argv, "--preset", "small"])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LimnerError, match="cannot be read as JSON"):
        parse_train(argv)


def test_families_command(toy):
    assert not parse_families([]).family and parse_families(["--json"]).json
    given = parse_families(
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
    given = parse(sample.Options[toy.Sampling], argv.split(), "sample")
    assert (given.run, given.n, given.prompt, given.label, given.seed) == (
        "runs/x",
        3,
        ("red", "blue"),
        ("cat",),
        9,
    )
    assert given.sampling == toy.Sampling(guidance=3.5)
    with pytest.raises(SystemExit):
        parse(sample.Options[toy.Sampling], ["runs/x", "--guidanse", "3"], "sample")


# ---- help


def undocumented(help_text: str) -> list[str]:
    """The flags in a --help that have no text of their own beside the default."""
    found, flag, text = [], "", ""
    for line in [*help_text.splitlines(), "---"]:
        inner = line.strip("│| ")
        starts, ruled = re.match("--[a-z]", inner), re.search("---|───", inner)
        if not starts and not ruled:
            text += " " + inner
            continue
        if flag and not re.sub(r"\((default|required|repeatable).*?\)", "", text).strip():
            found.append(flag)
        flag, _, text = inner.partition("  ") if starts else ("", "", "")
    return found


def test_the_overview_names_every_command_and_fits_the_terminal():
    lines = cli.HELP.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert {line.split()[0] for line in lines if line.startswith("  ")} == set(COMMANDS)
    modules = {name.name.removesuffix("_") for name in pkgutil.iter_modules(commands.__path__)}
    assert modules - {"options"} == set(COMMANDS)


def test_undocumented_flags_are_found():
    first = "--a INT   what a is (default: 3)\n--b.c INT  (default: 3)\n--d {1,2}\n   (default: 1)\n"
    assert undocumented(first + "--- title ---\n--e STR\n  its help") == ["--b.c INT", "--d {1,2}"]


@pytest.mark.parametrize(
    "command", [["data", "check"], ["data", "show"], *([c] for c in COMMANDS)], ids=" ".join
)
def test_every_flag_has_help(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    with contextlib.suppress(SystemExit):
        cli.run([*command, "--help"])
    text = capsys.readouterr().out
    assert not undocumented(text) and "default: '')" not in text and "default: None" not in text


@pytest.mark.parametrize("family", families.names())
def test_every_setting_of_a_family_has_help(family, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    sampling = families.load(family).Sampling
    for show in (
        lambda: parse_train([family, "--help"]),
        lambda: parse_families([family, "--help"]),
        lambda: parse(sample.Options[sampling], ["--help"], "sample"),
    ):
        with pytest.raises(SystemExit):
            show()
    text = capsys.readouterr().out
    assert not undocumented(text) and "default: '')" not in text and "default: None" not in text
