"""What is said of captions when a training begins, and of prompts when images are drawn."""

from __future__ import annotations

import json
import sys
import warnings

import pytest

from limner import api, families
from limner.checkpoint import read_model
from limner.data import open_data
from limner.inference.prompts import warn_of_prompts
from limner.text.encoder import encoder_of, unread
from limner.text.scripts import in_words, scripts_of
from limner.text.vocabulary import Vocabulary, VocabularyConfig
from limner.training.follows import notes_on_captions
from tests.helpers import paint


def described(path, captions):
    paint(path, 20, (16, 16))
    lines = [{"file_name": f"{i:03d}.png", "text": text} for i, text in enumerate(captions)]
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def notes(path, captions, flip=False, family="flow"):
    data = open_data(str(described(path, captions)), size=(16, 16), progress=False)
    model = families.build(family, api.preset_run(family, "tiny").model, data.spec)
    return list(notes_on_captions(model, data, flip))


def test_scripts_are_those_of_letters():
    assert scripts_of(["a red 3D kite!", "naïve"]) == {"LATIN"}
    assert scripts_of(["ａｂ", "😀 12 ½ ー"]) == {"LATIN"}
    assert scripts_of(["一只猫", "ねこ", "ネコ", "고양이", "кот", "γάτα"]) == {
        "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "CYRILLIC", "GREEK",
    }  # fmt: skip
    assert scripts_of([]) == scripts_of(["\ud800", "\x00"]) == set()
    assert [in_words(s) for s in ("CJK", "CYRILLIC", "HANGUL")] == [
        "Chinese characters",
        "Cyrillic letters",
        "Hangul",
    ]


def test_captions_that_are_missing_or_alike_are_said(tmp_path):
    assert notes(tmp_path / "good", [f"thing {i}" for i in range(20)], flip=True) == []
    assert notes(tmp_path / "some", [f"thing {i}" for i in range(17)]) == [
        "3 of 20 images have no caption: trained on as if without a prompt."
    ]
    (alike,) = notes(tmp_path / "alike", ["a thing"] * 20)
    assert alike.startswith("All 20 captions are alike, 'a thing', so prompts will change nothing")
    assert notes(tmp_path / "vae", ["a thing"] * 10, family="vae") == []


@pytest.mark.parametrize("text", ["a cat left of a dog", "Rightmost: a cat", "一只猫在狗的左边", "右侧的狗"])
def test_flips_with_captions_of_sides_are_said(text, tmp_path):
    captions = [text, *(f"a bright leftover {i}" for i in range(19))]
    (said,) = notes(tmp_path / "flip", captions, flip=True)
    assert (
        said.startswith(f"1 caption says left or right, such as {text!r}") and "leave --data.flip out" in said
    )
    assert notes(tmp_path / "plain", captions) == []


def test_prompts_that_are_empty_or_in_another_script_are_said(tmp_path):
    described(tmp_path / "data", [f"thing {i}" for i in range(20)])
    api.train("flow", tmp_path / "data", tmp_path / "run", preset="tiny", budget="16img", quiet=True)
    assert read_model(tmp_path / "run")[0]["scripts"] == ["LATIN"]
    pipeline = api.load(tmp_path / "run", "cpu")
    for prompt, said in [
        ("", "The prompt is empty, so images are drawn without one"),
        (["a", " "], "1 of 2 prompts are empty"),
        ("一只猫", r"No caption .* has Chinese characters, as '一只猫' has, .* write in Latin letters"),
        (["a", "кот ねこ"], r"has Cyrillic letters and hiragana, as 'кот ねこ'"),
    ]:
        with pytest.warns(UserWarning, match=said):
            pipeline.sample(2, prompt=prompt, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.sample(2, prompt=["a new thing, 3", "😀"], steps=1)
        warn_of_prompts(pipeline.model, ["一只猫"])  # of a run of before, whose scripts are not known


def test_a_vocabulary_has_a_limit_that_prompts_meet():
    vocabulary = Vocabulary(VocabularyConfig(kind="bytes", length=13))
    reader = encoder_of(vocabulary)
    assert reader is vocabulary and unread(reader, "a red circle here") == "here"
    assert reader.limit == "13 pieces" and not unread(reader, "a red circ")


def test_bytes_for_want_of_a_package_are_said(tmp_path, monkeypatch):
    captions = [f"thing {i}" for i in range(20)]
    assert notes(tmp_path / "installed", captions, family="clip") == []
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (said,) = notes(tmp_path / "missing", captions, family="clip")
    assert "read as bytes" in said and "limner[text]" in said
