"""Clips whose truth is known, and the oracle that reads them back."""

from collections import Counter

import numpy as np
import pytest

from limner.data import open_data
from limner.data.sources.moving import source
from limner.data.sources.moving.digits import DIGITS, digit_cover
from limner.data.sources.moving.draw import Clip
from limner.data.sources.moving.scenes import MOTIONS, Scene, captions, parse, scenes, unseen
from limner.data.sources.scenes import COLOURS, SHAPES
from limner.settings import DataOptions, LimnerError


@pytest.mark.parametrize("shapes", [SHAPES, DIGITS])
def test_captions_are_read_back_and_cover_the_world(shapes):
    every = scenes(3000, 0, shapes)
    for scene in every:
        assert parse(scene.caption, shapes) == parse(scene.chinese, shapes) == scene
    actors = [actor for scene in every for actor in scene.actors]
    assert {actor.thing.shape for actor in actors} == set(shapes)
    assert {actor.thing.colour for actor in actors} == set(COLOURS)
    assert {actor.motion for actor in actors} == {*MOTIONS, "passes behind"}
    two = np.mean([scene.second is not None for scene in every])
    assert 0.28 < two < 0.39
    still = np.mean([{a.motion for a in scene.actors} == {"stands"} for scene in every])
    assert 0 < still < 0.03, "frames of a clip in which nothing moves have no order"


def test_one_combination_in_ten_is_held_out_in_either_order():
    train, held = scenes(6000, 0, SHAPES), scenes(600, 0, SHAPES, held_out=True)
    ways = lambda some: {scene.combination for scene in some}  # noqa: E731
    assert not ways(train) & ways(held)
    singles = [
        {s.combination for s in some if s.second is None} for some in (train, scenes(6000, 1, SHAPES, True))
    ]
    assert 0.07 < len(singles[1]) / sum(map(len, singles)) < 0.15
    pair = next(scene for scene in train if scene.second and scene.first.motion != "passes behind")
    turned = Scene(pair.second, pair.first)
    assert turned.combination == pair.combination and turned.canonical == pair.canonical


@pytest.mark.parametrize(
    ("caption", "meaning"),
    [
        ("A small red star moves left.", "a small red star moves left"),
        ("一个小的红色五角星向左移动", "a small red star moves left"),
        (
            "小红色星星向右上移动，大的蓝色圆圈逐渐变大。",
            "a small red star moves up and right and a large blue circle grows",
        ),
        (
            "一个小黑色三角从一个大的绿色方形背后穿过",
            "a small black triangle passes behind a large green square",
        ),
    ],
)
def test_captions_are_read_as_people_write_them(caption, meaning):
    assert parse(caption, SHAPES).caption == meaning


@pytest.mark.parametrize(
    ("caption", "hint"),
    [
        ("a small redd star moves left", "red"),
        ("a small red sta moves left", "star"),
        ("a small red star jumps", "like"),
        ("一个小的红色五角星跳舞", "like"),
    ],
)
def test_what_is_no_caption_is_refused_with_a_hint(caption, hint):
    with pytest.raises(LimnerError, match=hint):
        parse(caption, SHAPES)


def test_prompts_are_of_unseen_combinations_in_the_language_that_is_asked_for():
    known = captions(scenes(3000, 0, SHAPES))
    english, both = unseen(40, 3, SHAPES, known), unseen(40, 3, SHAPES, known, "both")
    assert not {parse(text, SHAPES).combination for text in english} & {
        parse(text, SHAPES).combination for text in known
    }
    assert [parse(text, SHAPES).caption for text in both] == english and both[1] != english[1]


def test_the_same_clip_at_another_rate_length_or_size_shows_the_same_motion():
    for i, scene in enumerate(scenes(12, 5, SHAPES)):
        clip = Clip(scene, i)
        long = clip.draw(32, 32, 64, 8)
        assert np.array_equal(clip.draw(32, 32, 16, 8), long[:16]) and np.array_equal(
            clip.draw(32, 32, 16), long[:16]
        )
        assert np.array_equal(clip.draw(32, 32, 32, 4), clip.draw(32, 32, 63, 8)[::2])
        assert np.array_equal(clip.draw(32, 32, 1)[0], long[0])
        small = clip.draw(64, 64, 16).reshape(16, 32, 2, 32, 2, 3).mean((2, 4))
        assert np.abs(small - long[:16]).mean() < 2
        assert not np.array_equal(clip.draw(32, 32), Clip(scene, i + 100).draw(32, 32))


@pytest.mark.parametrize(("frames", "rate"), [(16, 1000.0), (16, 0.5), (2, 8.0), (300, 60.0)])
def test_any_rate_and_length_shows_motion(frames, rate):
    moves = [s for s in scenes(60, 6, SHAPES) if s.first.motion.startswith("moves") and not s.second]
    for i, scene in enumerate(moves[:5]):
        drawn = Clip(scene, i).draw(32, 32, frames, rate).astype(int)
        assert drawn.shape == (frames, 32, 32, 3) and np.abs(drawn[0] - drawn[-1]).max() > 60


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (64, 24)])
def test_there_is_room_for_every_scene(size):
    for i, scene in enumerate(scenes(500, 7, SHAPES)):
        Clip(scene, i).draw(*size, frames=1)
    for i, scene in enumerate(scenes(60, 7, DIGITS)):
        Clip(scene, i, digit_cover).draw(*size, frames=1)
    with pytest.raises(LimnerError, match="24x24"):
        Clip(scene, 0).draw(16, 32)


@pytest.mark.parametrize("name", ["moving", "moving-digits"])
def test_the_sources_are_packed_as_clips_and_as_stills(name, monkeypatch):
    monkeypatch.setattr(source, "CLIPS", 30)
    data = open_data(name, size=(32, 40), options=DataOptions(frames=6), progress=False)
    assert len(data) == 30 and data.spec.shape == (3, 6, 32, 40) and data.spec.captions
    assert data.batch(np.arange(2)).image.shape == (2, 3, 6, 32, 40)
    shapes = SHAPES if name == "moving" else DIGITS
    firsts = [parse(text, shapes).first.motion for text in data.captions]
    assert [data.spec.classes[label] for label in data.labels] == firsts
    stills = open_data(name, size=(32, 40), progress=False)
    assert stills.spec.shape == (3, 32, 40) and stills.captions == data.captions
    assert np.array_equal(stills.array, data.array[:, 0])
    chinese = open_data(name, size=(32, 40), options=DataOptions(language="zh"), progress=False)
    assert [parse(text, shapes).caption for text in chinese.captions] == data.captions


def test_motions_are_balanced():
    counts = Counter(s.first.motion for s in scenes(3000, 0, SHAPES) if s.second is None)
    assert min(counts[m] for m in MOTIONS if m != "stands") > 100
