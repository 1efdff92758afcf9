"""Too little to measure, nothing but duplicates, and held-out images that cannot be relied on: refused or said."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from limner import api
from limner.core import LimnerError
from limner.evaluation.checks import check_held_out
from limner.evaluation.compare import compare
from limner.evaluation.evaluate import evaluate
from limner.evaluation.options import EvaluateOptions
from limner.evaluation.real import open_whole
from limner.inference.pipeline import Pipeline
from tests.helpers import paint

RANDOM = EvaluateOptions(features="random")


def repeat(folder: Path, source: Path, times: int) -> Path:
    """Each image of a folder several times."""
    folder.mkdir()
    for path in source.iterdir():
        for i in range(times):
            shutil.copy(path, folder / f"{path.stem}-{i}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("checks")
    paint(root / "real", 240)
    paint(root / "made", 30, seed=1)
    api.train("vae", root / "real", root / "run", preset="tiny", budget="16img", quiet=True,
              training={"samples": 0}, data={"holdout": 0.1})  # fmt: skip
    return root


def measure(what: Path, source: Path, to: Path, options: EvaluateOptions = RANDOM):
    return evaluate(what, [str(source)], options, to=to, quiet=True)


@pytest.mark.parametrize(
    ("what", "source", "n", "words"),
    [
        ("nineteen", "real", None, "19 images are too few to measure: the folder needs at least 20"),
        ("made", "real", 19, "--n 19 is too few to measure: choose at least 20"),
        ("run", "real", 19, "--n 19 is too few"),
        ("made", "nineteen", None, "19 real images are too few to measure against"),
        ("run", "nineteen", None, "19 real images are too few to measure against"),
    ],
)
def test_too_little_is_refused_before_anything_is_drawn(place, tmp_path, what, source, n, words):
    paint(tmp_path / "nineteen", 19)

    def at(name: str) -> Path:
        return (tmp_path if (tmp_path / name).exists() else place) / name

    with pytest.raises(LimnerError, match=words):
        measure(at(what), at(source), tmp_path / "out", replace(RANDOM, n=n))
    assert not (tmp_path / "out").exists()


def test_compare_refuses_too_few_before_it_trains(tmp_path):
    with pytest.raises(LimnerError, match="19 real images are too few to measure against"):
        compare([str(paint(tmp_path / "nineteen", 19))], ["vae"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_equal_images_are_measured_and_said(place, tmp_path):
    collapsed = repeat(tmp_path / "collapsed", paint(tmp_path / "one", 1), 30)
    result = measure(collapsed, place / "real", tmp_path / "out").fidelity
    assert any("All 30 images are equal" in note for note in result.notes) and result.duplicates == 29
    for figure in (
        result.kid,
        result.frechet,
        result.precision,
        result.recall,
        result.density,
        result.coverage,
    ):
        assert all(map(math.isfinite, (figure.value, figure.low, figure.high)))
    assert result.frechet.value > result.frechet.floor and result.recall.value < 0.2


@pytest.mark.parametrize("different", [1, 10])
def test_a_source_of_a_few_images_many_times_is_no_measure(place, tmp_path, different):
    source = repeat(tmp_path / "few", paint(tmp_path / "once", different), 60 // different)
    found = measure(place / "made", source, tmp_path / "out").fidelity
    assert any(f"only {different} of" in note and "No figure is reliable" in note for note in found.notes)
    assert found.memorised is None


def test_a_source_where_everything_is_there_twice(place, tmp_path):
    twice = repeat(tmp_path / "twice", place / "real", 2)
    found = measure(place / "made", twice, tmp_path / "out")
    assert found.fidelity.real_duplicates > 200
    assert any(
        "real images equal an earlier one: duplicates count twice" in note for note in found.fidelity.notes
    )
    assert found.fidelity.memorised is None or found.fidelity.copies.threshold > 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["real_duplicates"] == found.fidelity.real_duplicates and written["duplicates"] == 0


def test_more_images_than_there_are(place, tmp_path):
    result = measure(place / "made", place / "real", tmp_path / "out", replace(RANDOM, n=5000)).fidelity
    assert result.n == 30 and any("--n 5,000 is more than" in note for note in result.notes)
    result = measure(place / "run", place / "real", tmp_path / "run", replace(RANDOM, n=300)).fidelity
    assert result.n == 300, "a run draws as many as it is asked for"


def test_whether_held_out_images_can_be_relied_on(place, tmp_path):
    pipeline = Pipeline(place / "run")

    def held_out(source: Path):
        real = open_whole([str(source)], pipeline.spec, pipeline.loaded.run.data, progress=False)
        return check_held_out(pipeline, [str(source)], real, quiet=True)

    own = held_out(place / "real")
    assert own.reliable and own.why is None and "was not trained on them" in str(own)
    few = held_out(place / "made")
    assert not few.reliable and "it takes 20" in few.why and "are not reliable" in str(few)
    other = paint(tmp_path / "other", 240, seed=5)
    assert held_out(other).reliable
    mixed = repeat(tmp_path / "mixed", place / "real", 1)
    for path in other.iterdir():
        shutil.copy(path, mixed / f"other-{path.name}")
    found = held_out(mixed)
    assert not found.reliable and "equal images that were trained on" in found.why
    pipeline.loaded.run.__dict__["sources"] = (str(tmp_path / "gone"),)
    found = held_out(other)
    assert not found.reliable and "cannot be opened" in found.why


def test_the_result_says_it(place, tmp_path, limner):
    other = paint(tmp_path / "other", 240, seed=5)
    done = limner(
        "evaluate", place / "run", other, "--n", 40, "--features", "random", "--to", tmp_path / "out"
    )
    said = " ".join(done.stdout.split())
    assert "24 real images are held out: the run was not trained on them." in said
    assert "copies of its own training images are not looked for" in said
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["held_out"] == {"n": 24, "reliable": True}
    found = measure(place / "made", other, tmp_path / "folder")
    assert not found.held_out.reliable and "nobody knows which of the real images" in str(found.held_out)
