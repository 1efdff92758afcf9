"""What a training follows of its data, texts longer than the model reads, and classes by name in any Unicode form."""

import json
import re
import unicodedata
import warnings

import pytest

from limner import api, families
from limner.core import ImageSpec, LimnerError
from limner.data import check, finder, open_data
from limner.inference.pipeline import condition_for
from limner.synthesis import folder
from limner.text.encoder import ByteEncoder, TextConfig, encoder_of, length_flag, unread
from limner.training.follows import follows
from tests.helpers import paint

CAFE = unicodedata.normalize("NFC", "Café"), unicodedata.normalize("NFD", "Café")
LONG = "a flat square seen from the front, " * 4


def described(path, rows):
    paint(path, 20, (16, 16))
    lines = [{"file_name": f"{i:03d}.png", **row} for i, row in enumerate(rows)]
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_data(str(path), size=(16, 16), progress=False)


def model_for(family, data):
    run = api.preset_run(family, "tiny")
    return families.build(family, run.model, data.spec)


def test_a_training_says_what_it_follows_and_what_it_leaves(tmp_path):
    both = described(tmp_path / "both", [{"text": f"thing {i}", "label": i % 3} for i in range(20)])
    some = described(tmp_path / "some", [{"text": f"thing {i}"} for i in range(12)])
    none = described(tmp_path / "none", [{"title": "thing"} for _ in range(20)])
    assert follows(model_for("flow", both), both) == [
        "follows: captions of 20 of 20 images; it ignores 3 classes"
    ]
    assert follows(model_for("dcgan", both), both) == [
        "follows: 3 classes; it ignores captions of 20 of 20 images"
    ]
    assert follows(model_for("flow", some), some) == ["follows: captions of 12 of 20 images"]
    nothing = follows(model_for("vae", both), both)[0]
    assert nothing == "follows nothing: vae ignores captions of 20 of 20 images and 3 classes"
    assert follows(model_for("flow", none), none) == [
        "follows nothing: the images have no captions and no classes"
    ]
    assert (
        check(str(tmp_path / "some"), progress=False).follows == "captions of 12 of 20 images" == some.follows
    )
    assert "nothing" in check(str(tmp_path / "none"), progress=False).follows


@pytest.mark.parametrize("text", ["x" * 100, "红" * 50, "one two three " * 9, "\ud800" * 70])
def test_what_is_read_and_what_is_not_are_the_text(text):
    encoder = ByteEncoder(TextConfig(width=16, layers=1, length=64))
    read = encoder.read(text)
    end = unread(encoder, text)
    assert end and text.replace("\ud800", "?").startswith(read) and text.strip().endswith(end)
    assert encoder.pieces([text]).equal(encoder.pieces([read])) and not unread(encoder, text[: len(read)])


def test_captions_longer_than_the_model_reads_are_counted_with_the_flag(tmp_path):
    data = described(tmp_path, [{"text": LONG + "red" if i < 3 else "short"} for i in range(20)])
    model = model_for("flow", data)
    said = follows(model, data)[1]
    assert said.startswith(
        "3 of 20 captions are longer than the 128 bytes (42 Chinese characters) that are read"
    )
    assert "front, red" in said and "raise --model.text.length" in said and length_flag(model.config)
    assert encoder_of(model_for("vae", data)) is None


def test_what_is_lost_of_a_prompt_is_said_where_it_is_drawn(tmp_path):
    described(tmp_path / "data", [{"text": "a thing"}] * 20)
    api.train("flow", tmp_path / "data", tmp_path / "run", preset="tiny", budget="16img", quiet=True)
    pipeline = api.load(tmp_path / "run", "cpu")
    with pytest.warns(
        UserWarning, match=r"The prompt is longer than the 128 bytes .* 'the front, red', is ignored"
    ):
        pipeline.sample(1, prompt=LONG + "red", steps=1)
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer"):
        pipeline.sample(2, prompt=["short", LONG], steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.sample(1, prompt="short", steps=1)


def test_a_class_is_found_in_any_unicode_form(tmp_path):
    for name in ("tea", CAFE[1]):
        paint(tmp_path / name, 10, (16, 16), seed=len(name))
    data = open_data(str(tmp_path), size=(16, 16), progress=False)
    assert data.spec.classes == (CAFE[0], "tea")
    for classes in (data.spec.classes, (CAFE[1], "tea")):  # also of a run of before
        model = model_for("dcgan", type("Old", (), {"spec": ImageSpec(3, 16, 16, classes=classes)}))
        for name in CAFE:
            assert condition_for(model, 1, labels=[name]).label.tolist() == [0]
        with pytest.raises(LimnerError, match="no label 'coffee'"):
            condition_for(model, 1, labels=["coffee"])
    both = finder(CAFE)
    assert [both(name) for name in CAFE] == [0, 1] and both("x") == -1


@pytest.mark.process
def test_a_drawn_folder_is_read_whatever_its_prompt(tmp_path, limner):
    described(tmp_path / "data", [{"text": "a thing"}] * 20)
    api.train("flow", tmp_path / "data", tmp_path / "run", preset="tiny", budget="16img", quiet=True)
    prompt = "a\u2028ball\x85on\u2029grass"
    limner(
        "sample", tmp_path / "run", "--prompt", prompt, "--n", "2", "--to", tmp_path / "drawn", "--steps", "1"
    )
    lines = (tmp_path / "drawn" / folder.METADATA).read_text("utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == [prompt] * 2
    told = check(str(tmp_path / "drawn"), progress=False)
    assert told.captions == 2 and not told.problems


def test_a_budget_that_ends_before_each_image_was_seen_is_said(tmp_path, limner):
    paint(tmp_path / "pictures", 60, (16, 16))

    def said(budget: str) -> str:
        out = tmp_path / budget
        done = limner(
            "train", "flow", tmp_path / "pictures", "--out", out, "--preset", "tiny", "--budget", budget
        )
        assert "" not in done.stderr.splitlines()  # empty lines, of bars without a terminal
        return " ".join(done.stderr.split())

    assert re.search(
        r"The budget of 16img ends after about 16 of (5.) images, before each was seen once. "
        r"Each is seen once in \1img: raise --budget if",
        said("16img"),
    )
    assert "seen once" not in said("60img")
    short = said("0.0001s")
    assert "The budget of 0.0001s is less than one step of 16 images, so that one step is all" in short
    assert re.search(r"Each is seen once in about [\d.]+s: raise --budget, or lower --size, if", short)


def test_twelve_images_are_few_and_what_that_means_is_said(tmp_path, limner):
    """Before training, and where they are to be measured."""
    folder = paint(tmp_path / "twelve", 12)
    few = "12 images are few: a model will copy them more than it varies them, and of fewer than 20 none is held out"
    assert few in str(check(str(folder), progress=False))
    run = "--out", tmp_path / "run", "--preset", "tiny", "--budget", "16img"
    assert few in limner("train", "flow", folder, *run).stderr
    told = limner("evaluate", tmp_path / "run", folder, ok=False)
    assert told.returncode == 2 and "12 real images are too few to measure against" in told.stderr
    assert "or only look at what a run draws" in told.stderr
    half = paint(tmp_path / "more", 100)
    assert "are few" not in str(check(str(half), progress=False))
