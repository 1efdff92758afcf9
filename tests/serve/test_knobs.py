"""What a run says of itself, and which settings it takes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from limner import families
from limner.core import ImageSpec
from limner.diffusion.sampling import SamplingConfig
from limner.inference.pipeline import Pipeline
from limner.serve.engine.knobs import card_of, comments, knobs_of, sampling_for
from limner.serve.engine.sentences import told
from limner.serve.messages import Frames, Knob, Ready, encode
from limner.settings import LimnerError
from tests.test_frozen import unpack


@pytest.fixture
def painter(toy):
    family = families.load("painter")
    return family(family.Config(), ImageSpec(3, 8, 8, classes=("cat", "dog")))


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(unpack("flow-label", tmp_path_factory.mktemp("flow")), "cpu")


def test_every_kind_of_field_is_told(painter):
    assert knobs_of(painter) == (
        Knob("steps", "integer", 3, "strokes", least=1, most=250),
        Knob(
            "left", "number", 0.5, "how much of what is there each stroke leaves", least=0, most=1, above=True
        ),
        Knob("tone", "string", "plain", "of the result", ("plain", "bright")),
        Knob("edge", "number", None, "share that is black; default: none", least=0, most=1, below=True),
        Knob("mirror", "boolean", False, "the other way round"),
        Knob("order", "list", [1, 2], "of the strokes"),
        Knob("other", "string", "", "run to mix with", model=True),
    )


def test_a_plain_dataclass_has_knobs_too(toy):
    found = knobs_of(toy(toy.Config(), ImageSpec(3, 8, 8)))
    assert found == (
        Knob("steps", "integer", 10, "network calls", least=1, most=250),
        Knob("guidance", "number", 2.0, "strength of the condition", least=0),
    )


@pytest.mark.parametrize("name", families.names())
def test_every_family_explains_its_settings(name: str):
    sampling = families.load(name).Sampling
    told = comments(sampling)
    assert all(told.get(field) for field in getattr(sampling, "__dataclass_fields__", {}))


def test_a_card_says_what_a_run_does(flow: Pipeline, tmp_path: Path):
    card = card_of("a/flow", flow, "print")
    assert (card.id, card.family, card.can, card.reads) == (
        "a/flow", "flow", ("draw",), tuple(sorted(flow.model.follows))
    )  # fmt: skip
    assert (card.height, card.width, card.channels) == flow.spec.shape[1:] + flow.spec.shape[:1]
    assert card.labels == flow.spec.classes and card.digest == flow.digest and card.fingerprint == "print"
    knobs = {knob.name: knob for knob in card.knobs}
    assert knobs["guidance"].default == 2.0  # as this run draws, where the family's default depends on it
    assert "model.condition_dropout 0" in knobs["guidance"].help and not any(
        "--" in k.help for k in card.knobs
    )
    assert knobs["autoguidance"].model and "heun" in knobs["solver"].choices
    assert list(Frames().feed(encode(Ready((card,))))) == [Ready((card,))]
    eyes = card_of("eyes", Pipeline(unpack("vit", tmp_path), "cpu"))
    assert eyes.can == ("embed", "classify") and eyes.features > 0 and not eyes.knobs


# What is refused --------------------------------------------------------------------------------------------

BAD = [
    ({"guidance": math.nan}, "guidance"),
    ({"guidance": math.inf}, "guidance"),
    ({"guidance": -1.0}, "guidance"),
    ({"guidance": True}, "guidance"),
    ({"solver": "zzz"}, "solver"),
    ({"steps": 2.5}, "steps"),
    ({"steps": 0}, "steps"),
    ({"steps": "8"}, "steps"),
    ({"strength": 0}, "strength"),
    ({"eta": "much"}, "eta"),
]


@pytest.mark.parametrize(("settings", "name"), BAD)
def test_settings_are_checked_wherever_they_come_from(settings: dict, name: str, flow: Pipeline):
    for make in (
        lambda: SamplingConfig(**settings),
        lambda: flow.model.Sampling(**settings),
        lambda: flow.sample(1, **settings),
        lambda: sampling_for(flow.model, settings, {}),
    ):
        with pytest.raises(LimnerError, match=name):
            make()


@pytest.mark.parametrize("named", [3, None, True, ["a"], b"a"])
def test_a_field_that_names_a_run_is_text(named: object, painter):
    for settings in ({"other": named}, {"picture": named}):
        with pytest.raises(LimnerError, match="must be text"):
            painter.Sampling(**settings)
    with pytest.raises(LimnerError, match="autoguidance must be text"):
        SamplingConfig(autoguidance=named)  # type: ignore[arg-type]


def test_a_loaded_run_may_stand_where_it_is_named(painter):
    assert painter.Sampling(other=painter).other is painter


@pytest.mark.parametrize("name", ["/etc/passwd", "runs/flow", "../flow", "flw"])
def test_a_run_is_named_by_its_id_never_by_a_path(name: str, flow: Pipeline, tmp_path: Path):
    with pytest.raises(LimnerError, match="names no model of this server") as error:
        sampling_for(flow.model, {"autoguidance": name}, {"flow": flow.model})
    assert "/etc" not in str(error.value)
    with pytest.raises(LimnerError):  # for a person, who may name any
        flow.sample(1, autoguidance=str(tmp_path / name.strip("/")))
    found = sampling_for(flow.model, {"autoguidance": "flow"}, {"flow": flow.model})
    assert found.autoguidance is flow.model


def test_no_picture_is_named(painter):
    with pytest.raises(LimnerError, match="leave it out"):
        sampling_for(painter, {"picture": "/etc/passwd"}, {})


@pytest.mark.parametrize(("settings", "said"), [({"steps": 10**9}, "250"), ({"repaints": 9}, "8 or less")])
def test_what_costs_much_is_capped(settings: dict, said: str, flow: Pipeline):
    with pytest.raises(LimnerError, match=said):
        sampling_for(flow.model, settings, {})
    assert sampling_for(flow.model, {"steps": 250}, {}).steps == 250


def test_an_unknown_setting_names_the_nearest(flow: Pipeline):
    with pytest.raises(LimnerError, match="guidance"):
        sampling_for(flow.model, {"guidence": 2.0}, {})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guidance_low": 2.0}, "guidance_low 2.0 is out of range: choose 0 to 1."),
        ({"steps": 0}, "steps 0 is out of range: choose 1 or more."),
        ({"steps": 2.5}, "steps must be a whole number, not 2.5."),
    ],
)
def test_errors_name_fields_as_json_does(settings: dict, said: str, flow: Pipeline):
    with pytest.raises(LimnerError) as error:
        sampling_for(flow.model, settings, {})
    assert told(error.value)[0] == said
