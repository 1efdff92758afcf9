"""Captions of the built-in sets in Chinese, or in both languages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from limner import api
from limner.core import LimnerError
from limner.data import open_data
from limner.data.sources import builtin, emoji_zh, shapes
from limner.settings import DataOptions


def read(source: str, language: str):
    return open_data(source, size=(32, 32), options=DataOptions(language=language), progress=False)


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= char <= "\u9fff" for char in text)


def test_the_same_shapes_have_captions_in_either_language(monkeypatch):
    monkeypatch.setattr(builtin, "SHAPES", 60)
    english, chinese, both = (read("shapes", language) for language in ("en", "zh", "both"))
    assert np.array_equal(english.array, chinese.array) and np.array_equal(english.array, both.array)
    assert english.spec.classes == chinese.spec.classes
    assert len({data.fingerprint for data in (english, chinese, both)}) == 3
    assert all(map(is_chinese, chinese.captions)) and not any(map(is_chinese, english.captions))
    assert [shapes.parse(text).caption for text in chinese.captions] == english.captions
    assert both.captions == [(chinese if i % 2 else english).captions[i] for i in range(60)]
    assert chinese.oracle.score(chinese.array, chinese.captions)["exact"] == 1


def test_emoji_have_chinese_names_where_unicode_has_them():
    if not any(Path(font).is_file() for font in builtin._FONTS):
        pytest.skip("no colour emoji font here")
    try:
        emoji_zh.files()
    except LimnerError as error:
        assert "apt install unicode-cldr-core" in str(error)
        pytest.skip("no names of emoji in Chinese here")
    english, chinese, both = (
        {item.name: item.caption for item in builtin.emoji(language).listing().items}
        for language in ("en", "zh", "both")
    )
    assert english.keys() == chinese.keys() == both.keys()
    assert chinese["emoji/1f99d"] == "浣熊" and chinese["emoji/2764-fe0f"] == "红心"
    assert chinese["emoji/1f1ea-1f1f8"] == "旗: 西班牙"
    assert sum(map(bool, chinese.values())) > 1_800
    assert 0.4 < sum(map(is_chinese, both.values())) / len(both) < 0.6 and all(both.values())
    assert len({builtin.emoji(language).key.__repr__() for language in ("en", "zh", "both")}) == 3


def test_without_the_names_the_package_is_named(monkeypatch):
    if not any(Path(font).is_file() for font in builtin._FONTS):
        pytest.skip("no colour emoji font here")
    monkeypatch.setattr(emoji_zh, "FOLDERS", ("/nowhere",))
    with pytest.raises(LimnerError, match="apt install unicode-cldr-core"):
        builtin.emoji("both")
    assert builtin.emoji("en").listing().items


def test_the_language_of_other_sources_is_their_own(tmp_path):
    with pytest.raises(
        LimnerError, match=r"--data\.language is for the captions of shapes, emoji, pairs:shapes"
    ):
        api.train("flow", "digits", tmp_path / "run", preset="tiny", budget="16img", data={"language": "zh"})
