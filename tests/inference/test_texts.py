"""Classes by their names and search by words, by a small CLIP that is trained here; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import limner as package
from limner.core import LimnerError
from limner.inference import texts, understand
from limner.inference.pipeline import Pipeline
from limner.metrics.matches import ensemble, fit, zero_shot_logits
from tests.helpers import golden
from tests.inference.test_understand import COLOURS, coloured


def captioned(folder: Path) -> Path:
    """Pictures of one colour each, in folders of their colours, with captions beside them."""
    coloured(folder, 20, {name: name for name in COLOURS})
    for image in folder.rglob("*.png"):
        image.with_suffix(".txt").write_text(f"a {image.parent.name} picture")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return captioned(tmp_path_factory.mktemp("source") / "images")


@pytest.fixture(scope="module")
def clip(source) -> Path:
    out = source.parent / "clip"
    package.train("clip", source, out, preset="tiny", budget="960img", quiet=True, training={"samples": 0})
    return out


@pytest.fixture(scope="module")
def vae(source) -> Path:
    out = source.parent / "vae"
    package.train("vae", source, out, preset="tiny", budget="16img", quiet=True, training={"samples": 0})
    return out


def test_a_class_is_the_mean_direction_of_its_prompts():
    given, expected = golden("clip_zero_shot")
    classes = ensemble(given["prompts"])
    torch.testing.assert_close(classes, expected["classes"], rtol=1e-9, atol=1e-9)
    logits = zero_shot_logits(given["image"], classes, given["scale"])
    torch.testing.assert_close(logits, expected["logits"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits.softmax(1), expected["probabilities"], rtol=1e-9, atol=1e-9)
    assert logits.argmax(1).tolist() == expected["index"].tolist()
    torch.testing.assert_close(
        fit(given["image"], given["image"]), torch.full((3,), 100.0, dtype=torch.float64)
    )


def test_classes_go_by_names_that_a_person_gives(clip, source, tmp_path):
    names = "a red picture, a green picture,a blue picture"
    result = understand.classify(clip, [str(source)], tmp_path / "p.json", names, quiet=True)
    assert {p.predicted for p in result.predictions} == {name.strip() for name in names.split(",")}
    assert all(p.path.startswith(p.predicted.split()[1]) for p in result.predictions)
    assert result.accuracy is None, "the folders have other names"
    again = understand.classify(clip, [str(source)], tmp_path / "q.csv", ["red", "a Green", "blue"],
                                quiet=True, templates=("a {} picture",))  # fmt: skip
    assert again.accuracy.value == 1 and again.accuracy.n == 40, "those of the classes that are named"
    assert json.loads((tmp_path / "p.json").read_text())["predictions"][0]["top"][0]["probability"] > 0.5


def test_templates_are_an_ensemble(clip):
    pipeline = Pipeline(clip)
    templates = ("a {} picture", "{}")
    classes = texts.embed_classes(pipeline, ["red", "blue"], templates)
    prompts = texts.embed_texts(pipeline, ["a red picture", "red", "a blue picture", "blue"])
    torch.testing.assert_close(classes, ensemble(prompts.unflatten(0, (2, 2))))
    torch.testing.assert_close(classes.norm(dim=1), torch.ones(2))


def test_images_are_found_by_words(clip, source, tmp_path):
    found = understand.search(
        clip, str(source), n=20, to=tmp_path / "s.png", text="a green picture", quiet=True
    )
    assert found.query == "a green picture" and found.n == 60
    assert {match.label for match in found.found} == {"green"}
    assert [m.similarity for m in found.found] == sorted((m.similarity for m in found.found), reverse=True)
    with Image.open(tmp_path / "s.png") as sheet:
        assert np.asarray(sheet).std() > 0
    picture = source / "red" / "000.png"
    found = understand.search(clip, str(source), picture, n=20, to=tmp_path / "s.png", quiet=True)
    assert found.found[0].path == "red/000.png" and {match.label for match in found.found} == {"red"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a cat", "names 1 class: name at least two"),
        (" , ", "names 0 classes"),
        ("cat,dog, cat", "'cat' 2 times"),
    ],
)
def test_names_that_make_no_classes_are_refused(clip, source, tmp_path, names, message):
    with pytest.raises(LimnerError, match=message):
        understand.classify(clip, [str(source)], tmp_path / "p.csv", names, quiet=True)


def test_what_a_run_cannot_do_is_refused_by_name(clip, vae, source, tmp_path):
    to = tmp_path / "p.csv"
    with pytest.raises(
        LimnerError, match="is a run of vae, which does not compare images with texts: use a run of "
    ):
        understand.classify(vae, [str(source)], to, "cat,dog", quiet=True)
    with pytest.raises(LimnerError, match="which does not compare images with texts"):
        understand.search(vae, str(source), to=tmp_path / "s.png", text="a cat", quiet=True)
    with pytest.raises(
        LimnerError, match='classifies by names, and none are given: add --labels "a cat,a dog"'
    ):
        understand.classify(clip, [str(source)], to, quiet=True)
    with pytest.raises(
        LimnerError, match=r"'a picture' has no place for the name of a class: put \{\} there"
    ):
        understand.classify(clip, [str(source)], to, "cat,dog", quiet=True, templates=("a picture",))
    for query, text in (("", ""), ("", " "), (source / "red" / "000.png", "red")):
        with pytest.raises(LimnerError, match="Name what to search for, and one thing only"):
            understand.search(clip, str(source), query, to=tmp_path / "s.png", text=text, quiet=True)
