"""Settings: to JSON and back, strictly; budgets and sizes."""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner import families
from limner.config import Budget, Run, budget_of, parse_budget, parse_size, preset_run, read_run
from limner.fields import INLINE, JsonResult, from_json, to_json
from limner.settings import DataOptions, LimnerError, Optimiser, Training
from tests.helpers import toy_run

pytestmark = pytest.mark.usefixtures("toy")


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
    run = toy_run(toy)
    again = Run.from_json(json.loads(json.dumps(run.to_json())))
    assert again == run
    assert again.model.maybe.latent == 7 and isinstance(again.model.rates, tuple)
    assert again.training.optimisers["generator"].lr == 0.1 + 0.2
    without = toy_run(toy, size=None, model=toy.Config())
    assert Run.from_json(json.loads(json.dumps(without.to_json()))) == without


def test_every_preset_round_trips():
    for name in families.names():
        for preset in families.load(name).presets.values():
            assert (
                from_json(type(preset.model), json.loads(json.dumps(to_json(preset.model)))) == preset.model
            )
            assert from_json(Training, json.loads(json.dumps(to_json(preset.training)))) == preset.training


BETA = st.floats(0, 1, exclude_max=True)


@given(st.builds(Optimiser, lr=st.floats(0, 1e30), betas=st.tuples(BETA, BETA)))
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
    data = toy_run(toy).to_json()
    del data["seed"]
    with pytest.raises(LimnerError, match=r"run.seed is missing"):
        Run.from_json(data)
    with pytest.raises(LimnerError, match="no family"):
        Run.from_json(toy_run(toy).to_json() | {"family": "tooy"})


def test_results_leave_out_what_is_none_and_spread_inline_fields():
    @dataclass(frozen=True)
    class Inner(JsonResult):
        class_: str
        wrong: bool | None = None

    @dataclass(frozen=True)
    class Outer(JsonResult):
        preset: str | None
        inner: list[Inner]
        spread: Inner | None = field(default=None, metadata=INLINE)

    result = Outer(None, [Inner("cat", False)], Inner("dog"))
    assert result.to_json() == {"preset": None, "inner": [{"class": "cat", "wrong": False}], "class": "dog"}
    assert Outer("a", []).to_json() == {"preset": "a", "inner": []}


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="set"):
        to_json({"a": {1, 2}})


@pytest.mark.parametrize("version", [0, 99, "2", [], None, 1.0, True])
def test_formats_of_the_future_are_refused(version, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"format": version}))
    with pytest.raises(LimnerError, match="cannot read: update it"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"model": {"attention": 3}}, r"model\.attention is not a setting"),
        ({"family": ["flow"]}, r"run\.family must be text"),
    ],
)
def test_settings_that_an_old_format_cannot_have_are_refused_by_name(change, refusal, tmp_path):
    saved = {**preset_run("flow", "tiny").to_json(), **change}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(LimnerError, match=refusal):
        read_run(tmp_path)


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
    with pytest.raises(LimnerError, match=r"is not a valid budget: use 90s, 4m, 200kimg or 50epochs"):
        parse_budget(text, epoch=1000)


def test_budget_share():
    assert Budget(60, "seconds").spent(seconds=30, images=10**9) == 0.5
    assert Budget(1000, "images").spent(seconds=10**9, images=1500) == 1.5


def test_size():
    assert parse_size("32") == (32, 32)
    assert parse_size("64x48") == parse_size(" 64 X 48 ") == parse_size("64×48") == (64, 48)
    for text in ("", "0", "x", "64x", "x48", "-3", "3.5", "64x48x3", "032", "9999999"):
        with pytest.raises(LimnerError, match="HEIGHTxWIDTH"):
            parse_size(text)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_run_may_hold_a_number_of_processes(version, tmp_path):
    """A setting of formats up to 4 that changed the speed alone."""
    saved = {"format": version, **preset_run("vae", "tiny").to_json()}
    saved["training"]["processes"] = 2
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert not hasattr(read_run(tmp_path).training, "processes")


def test_settings_of_format_2(tmp_path):
    """`--data.fit stretch` is called squash since format 3."""
    for old, new in ("stretch", "squash"), ("pad", "pad"):
        saved = {"format": 2, **preset_run("flow", "tiny").to_json()}
        saved["data"]["fit"] = old
        (tmp_path / "config.json").write_text(json.dumps(saved))
        assert read_run(tmp_path).data.fit == new


def test_settings_of_format_3(tmp_path):
    """What a run of format 3 does not say, it meant as it was then."""
    saved = {"format": 3, **preset_run("stylegan2", "base").to_json()}
    for later in ("discriminator_mapping", "mean_decay", "residual"):
        del saved["model"][later]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert read_run(tmp_path).data.filter == "quick", "the images that it was trained on"
    model = read_run(tmp_path).model
    assert model.mapping == model.discriminator_mapping == 2 and model.mean_decay == 0.998 and model.residual
    today = preset_run("stylegan2", "base").model
    assert today.discriminator_mapping == 8 and today.mean_decay == 0.995


@pytest.mark.parametrize(
    ("old", "sources", "now"),
    [
        ({"pairs": "sketches"}, ["sketches", "images"], {"given": "pairs"}),
        ({"domain": "zebras"}, ["zebras", "images"], {"given": "domains"}),
        ({"side_by_side": "left"}, ["images"], {"halves": True}),
        ({"side_by_side": "right"}, ["images"], {"halves": True, "reverse": True}),
        ({}, ["images"], {}),
    ],
)
def test_settings_of_format_5(old, sources, now, tmp_path):
    """Given pictures had settings of their own; since format 6 they are the first of two sources."""
    saved = {"format": 5, **preset_run("vae", "tiny").to_json(), "sources": ["images"]}
    for name in ("given", "halves", "reverse"):
        del saved["data"][name]
    saved["data"] |= {"pairs": "", "domain": "", "side_by_side": "", "given_size": [8, 8], **old}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    run = read_run(tmp_path)
    assert list(run.sources) == sources and run.data == DataOptions(
        given_size=(8, 8), fit=run.data.fit, **now
    )
    if "given" in now:
        (tmp_path / "config.json").write_text(json.dumps({**saved, "sources": ["images", "more"]}))
        with pytest.raises(
            LimnerError, match=r"on 2 sources of images, and today's Limner takes one: train it again"
        ):
            read_run(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.003, "0.1s"), (9.91, "10s"), (41, "41s"), (119.5, "120s"), (850, "15m"), (8640, "2.4h")],
)
def test_a_time_becomes_a_budget_that_is_enough(seconds: float, words: str) -> None:
    assert budget_of(seconds) == words
    assert seconds <= parse_budget(words, 1).amount < max(0.2, 1.1 * seconds)
