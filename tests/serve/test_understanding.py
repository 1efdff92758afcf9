"""Features, classes and translated pictures from memory, as the commands give them of files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner import api, families
from limner.data import whole_from_bytes
from limner.inference.apply import apply
from limner.inference.pipeline import Pipeline
from limner.inference.understand import classify, embed
from limner.serve.engine import understanding
from limner.serve.engine.understanding import Describer, Translators
from limner.serve.messages import Event, Form, Work
from limner.settings import LimnerError
from tests.helpers import paint
from tests.test_frozen import unpack


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("pictures"), 3, (37, 25))


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("name", ["vit", "dino"])
def test_features_are_those_of_the_command(name: str, pictures: Path, tmp_path: Path):
    pipeline = Pipeline(unpack(name, tmp_path / "run"), "cpu")
    embed(tmp_path / "run", [str(pictures)], tmp_path / "all.npz", device="cpu", quiet=True)
    with np.load(tmp_path / "all.npz", allow_pickle=False) as wanted:
        found = [understanding.embed(pipeline, picture) for picture in contents(pictures)]
        np.testing.assert_allclose(found, wanted["features"], rtol=1e-4, atol=1e-5)


def test_classes_are_those_of_the_command(pictures: Path, tmp_path: Path):
    pipeline = Pipeline(unpack("vit", tmp_path / "run"), "cpu")
    wanted = classify(tmp_path / "run", [str(pictures)], tmp_path / "all.csv", device="cpu", quiet=True)
    for picture, prediction in zip(contents(pictures), wanted.predictions, strict=True):
        found = understanding.classify(pipeline, picture)
        assert {name for name, _ in found} == set(pipeline.spec.classes)
        assert sum(p for _, p in found) == pytest.approx(1)
        assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
        assert found[0] == (prediction.predicted, pytest.approx(prediction.probability, rel=1e-4))


def test_a_run_that_cannot_says_so(tmp_path: Path, pictures: Path):
    pipeline = Pipeline(unpack("dcgan", tmp_path), "cpu")
    picture = contents(pictures)[0]
    with pytest.raises(LimnerError, match="does not describe"):
        understanding.embed(pipeline, picture)
    with pytest.raises(LimnerError, match="does not classify"):
        understanding.classify(pipeline, picture)
    with pytest.raises(LimnerError, match="makes no picture"):
        Translators({"m": pipeline.model}).apply("m", {}, 0, picture, Form())


@pytest.fixture
def restorer(toy, pictures: Path, tmp_path: Path) -> Pipeline:
    assert families.load("restorer")
    api.train("restorer", pictures, tmp_path / "restorer", preset="tiny", budget="8img", size=16, quiet=True)
    return Pipeline(tmp_path / "restorer", "cpu")


def test_a_picture_is_translated_as_by_the_command(restorer: Pipeline, pictures: Path, tmp_path: Path):
    apply(tmp_path / "restorer", pictures, tmp_path / "made", device="cpu", quiet=True, style="waves")
    translators = Translators({"r": restorer.model})
    for path in sorted(pictures.glob("*.png")):
        made = translators.apply("r", {"style": "waves"}, 0, path.read_bytes(), Form())
        wanted = whole_from_bytes((tmp_path / "made" / path.name).read_bytes())
        assert np.array_equal(whole_from_bytes(made).pixels, wanted.pixels)
        assert made == translators.apply("r", {"style": "waves"}, 0, path.read_bytes(), Form())
    assert Image.open(io.BytesIO(made)).size == (50, 74)


def test_few_translators_are_kept(restorer: Pipeline, pictures: Path):
    translators, picture = Translators({str(i): restorer.model for i in range(6)}), contents(pictures)[0]
    for name in "012345105":
        translators.apply(name, {}, 0, picture, Form())
    assert [key[2] for key in translators._kept] == ["4", "1", "0", "5"]


def test_too_large_a_picture_is_refused_without_a_flag_of_the_command(
    restorer: Pipeline, pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(understanding, "MEMORY", -(2**40))
    with pytest.raises(LimnerError, match="An image of 25x37 takes more memory") as error:
        Translators({"r": restorer.model}).apply("r", {}, 0, contents(pictures)[0], Form())
    assert "--" not in str(error.value)


def test_a_setting_that_is_none_is_refused(restorer: Pipeline, pictures: Path):
    with pytest.raises(LimnerError, match="waves"):
        Translators({"r": restorer.model}).apply("r", {"style": "wvs"}, 0, contents(pictures)[0], Form())


# In turn ----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Describer, list[Event]]:
    """A describer of a run, and what it says."""
    said: list[Event] = []
    return Describer({"vit": Pipeline(unpack("vit", tmp_path), "cpu")}, said.append), said


def test_works_are_answered_in_turn(asked, pictures: Path):
    describer, said = asked
    for number in (1, 2):
        describer.submit(Work(number, "vit", "c", "embed", pictures=tuple(contents(pictures))))
    assert describer.waiting("vit") == 6
    while not describer.idle:
        describer.step()
    answers = [(event.work, event.index) for event in said if event.kind == "answer"]
    assert answers == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)]
    assert [event.work for event in said if event.kind == "ended"] == [1, 2]
    assert describer.reports["vit"].images == 6 and describer.waiting("vit") == 0


def test_a_cancelled_work_and_a_late_one_are_left(asked, pictures: Path):
    describer, said = asked
    picture = contents(pictures)[0]
    describer.submit(Work(1, "vit", "c", "embed", pictures=(picture, picture)))
    describer.submit(Work(2, "vit", "c", "embed", pictures=(picture,), seconds=1e-9))
    describer.step()
    describer.cancel(1)
    describer.cancel(7)
    describer.step()
    assert [(e.work, e.cancelled) for e in said if e.kind == "ended"] == [(1, True), (2, True)]
    assert sum(event.kind == "answer" for event in said) == 1
    assert describer.reports["vit"].cancelled == 2 and describer.idle


@pytest.mark.parametrize(
    ("error", "status", "counted"), [(MemoryError(), 503, 1), (RuntimeError("can't allocate memory"), 503, 1),
                                     (ValueError("odd"), 500, 0), (LimnerError("Bad picture: no."), 400, 0)],
)  # fmt: skip
def test_what_fails_is_said_and_others_go_on(
    error: Exception, status: int, counted: int, asked, pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    describer, said = asked
    real = understanding.embed

    def embed(pipeline: Pipeline, picture: bytes) -> list[float]:
        if picture == b"bad":
            raise error
        return real(pipeline, picture)

    monkeypatch.setattr(understanding, "embed", embed)
    for number, picture in ((1, b"bad"), (2, contents(pictures)[0])):
        describer.submit(Work(number, "vit", "c", "embed", pictures=(picture,)))
    while not describer.idle:
        describer.step()
    kinds = [(event.work, event.kind) for event in said]
    assert kinds[2:] == [(1, "begun"), (1, "failed"), (1, "ended"), (2, "begun"), (2, "answer"), (2, "ended")]
    assert said[3].status == status and said[3].message.endswith(".")
    assert describer.reports["vit"].out_of_memory == counted
