"""The pictures whose truth is known, and the oracle that reads them back."""

import time
from collections import Counter

import numpy as np
import pytest

from limner.data import open_data
from limner.data.sources import shapes
from limner.settings import DataOptions, LimnerError


def test_captions_are_read_back_and_cover_the_world():
    scenes = shapes.scenes(4000, seed=0)
    assert all(shapes.parse(scene.caption) == scene for scene in scenes)
    assert {scene.first.colour for scene in scenes} == set(shapes.COLOURS)
    assert {scene.second.shape for scene in scenes} == set(shapes.SHAPES)
    assert {scene.relation for scene in scenes} == set(shapes.RELATIONS)


def test_one_combination_in_ten_is_held_out_with_its_mirrored_telling():
    train, held = shapes.scenes(8000, seed=0), shapes.scenes(700, seed=0, held_out=True)
    ways = lambda scenes: {  # noqa: E731
        (s.first.shape, s.first.colour, s.relation, s.second.shape, s.second.colour)
        for scene in scenes
        for s in (scene, scene.canonical)
    }
    assert not ways(train) & ways(held)
    assert 0.07 < len(ways(held)) / (len(ways(train)) + len(ways(held))) < 0.13
    assert len(set(held)) == 700


def test_scenes_and_drawings_follow_their_seed():
    assert shapes.scenes(20, seed=4) == shapes.scenes(20, seed=4) != shapes.scenes(20, seed=5)
    scenes = shapes.scenes(20, seed=4)
    assert np.array_equal(shapes.draw(scenes, 32, 40, seed=1), shapes.draw(scenes, 32, 40, seed=1))
    assert not np.array_equal(shapes.draw(scenes, 32, 40, seed=1), shapes.draw(scenes, 32, 40, seed=2))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (48, 32), (32, 80)])
def test_the_oracle_reads_real_pictures(height, width):
    scenes = shapes.scenes(400, seed=2, held_out=True)
    score = shapes.score(shapes.draw(scenes, height, width, seed=3), [s.caption for s in scenes])
    assert score["exact"] >= 0.995 and score["exact_with_size"] >= 0.995


@pytest.mark.parametrize(("height", "width"), [(24, 24), (32, 32), (64, 64), (48, 32), (32, 80)])
def test_the_oracle_reads_outlines_on_dark_too(height, width):
    scenes = shapes.scenes(400, seed=2, held_out=True)
    filled, outlined = (shapes.draw(scenes, height, width, 3, style) for style in ("filled", "outlined"))
    assert shapes.score(outlined, [s.caption for s in scenes])["exact_with_size"] >= 0.995
    assert shapes.compare(outlined, outlined)["exact"] >= 0.995
    across = shapes.compare(filled, outlined)
    assert across["exact"] == across["style"] == 0, "a picture that is left as it was has the wrong style"
    assert min(across["shape"], across["colour"], across["size"], across["place"]) >= 0.995
    moved = shapes.compare(np.roll(outlined, min(height, width) // 12, 2), outlined)
    assert moved["place"] < 0.05 and moved["exact"] < 0.05 and moved["shape"] > 0.5
    other = shapes.compare(np.roll(outlined, 1, 0), outlined)
    assert other["readable"] >= 0.995 and other["exact"] < 0.03


def test_the_oracle_is_not_fooled_by_half_a_style():
    scenes = shapes.scenes(100, seed=2)
    filled, outlined = (shapes.draw(scenes, 32, 32, 3, style).astype(int) for style in ("filled", "outlined"))
    paper, dark = filled[:, :1, :1], outlined[:, :1, :1]
    drawn = np.abs(filled - paper).max(-1, keepdims=True) > 20
    line = np.abs(outlined - dark).max(-1, keepdims=True) > 20
    wrong = {
        "filled on dark": np.where(drawn, filled, dark),
        "outlined on paper": np.where(line, outlined, paper),
        "inverted": 255 - filled,
        "dark alone": np.broadcast_to(dark, filled.shape),
        "noise": np.random.default_rng(0).integers(0, 256, filled.shape),
        "blurred": (outlined + np.roll(outlined, 2, 1) + np.roll(outlined, 2, 2)) // 3,
        "half": np.where(np.arange(32)[:, None] < 16, outlined, dark),
    }
    for name, images in wrong.items():
        assert shapes.compare(images.astype(np.uint8), filled.astype(np.uint8))["shape"] < 0.1, name
    with pytest.raises(LimnerError, match="Picture 0 to compare with is not a scene"):
        shapes.compare(filled.astype(np.uint8), wrong["noise"].astype(np.uint8))


def test_pairs_of_shapes_show_the_same_scenes_in_two_styles():
    data = open_data("pairs:shapes", size=(32, 32), progress=False)
    assert len(data) == 20_000 and data.paired and data.spec.given.shape == data.spec.shape == (3, 32, 32)
    rows = np.arange(0, 20_000, 97)
    shown = open_data("shapes", size=(32, 32), progress=False)
    assert np.array_equal(data.given.array[rows], shown.array[rows]) and data.captions == shown.captions
    given, wanted, texts = data.given.array[rows], data.array[rows], [data.captions[i] for i in rows]
    assert (
        data.oracle.score(given, texts)["exact_with_size"]
        == data.oracle.score(wanted, texts)["exact_with_size"]
        == 1
    )
    same = data.oracle.compare(given, wanted)
    assert same["shape"] == same["colour"] == same["size"] == same["place"] == 1 and same["style"] == 0
    back = open_data("pairs:shapes", size=(32, 32), options=DataOptions(reverse=True), progress=False)
    assert np.array_equal(back.array[rows], given) and np.array_equal(back.given.array[rows], wanted)


def test_domains_of_shapes_share_no_scene_and_their_truth_is_known():
    data = open_data("domains:shapes", size=(32, 32), progress=False)
    assert (
        not data.paired and min(len(data), len(data.given)) > 9_000 and len(data) + len(data.given) == 20_000
    )
    scenes = [
        {shapes.parse(text).combination for text in part}
        for part in (data.captions, _texts(data.given.names))
    ]
    assert not scenes[0] & scenes[1]
    truth = open_data("pairs:shapes", size=(32, 32), progress=False)
    place = {name: i for i, name in enumerate(truth.names)}
    rows = [place[name] for name in data.given.names[:100]]
    assert np.array_equal(truth.given.array[rows], data.given.array[:100]), "of the same name in pairs:shapes"
    with pytest.raises(LimnerError, match="domains:shapes holds given and wanted pictures: name"):
        open_data(["domains:shapes", "shapes"], size=(32, 32), progress=False)


def _texts(names):
    texts = [scene.caption for scene in shapes.scenes(20_000, seed=0)]
    return [texts[int(name.removeprefix("shapes/"))] for name in names]


def test_the_oracle_reads_noisy_but_not_wrong_pictures():
    scenes = shapes.scenes(200, seed=5)
    noise = np.random.default_rng(0).normal(0, 6, (200, 32, 32, 3))
    images = np.clip(shapes.draw(scenes, 32, 32, seed=6) + noise, 0, 255).astype(np.uint8)
    assert shapes.score(images, [s.caption for s in scenes])["exact"] > 0.95


def test_the_oracle_is_not_fooled():
    prompt = "a large red circle above a small blue square"
    scene = shapes.parse(prompt)
    right = shapes.draw([scene], 32, 32, seed=0)
    assert shapes.score(right, [prompt])["exact"] == 1

    def exact(image: np.ndarray, asked: str = prompt) -> float:
        return shapes.score(image, [asked])["exact"]

    blank = np.full_like(right, 240)
    missing = np.concatenate([right[:, :18], blank[:, 18:]], axis=1)  # no square
    half = right.copy()
    half[:, :, 16:] = 240  # half of each
    red = np.linalg.norm(right - np.array(shapes.COLOURS["red"], float), axis=-1) < 60
    mixed = np.where((red & (np.arange(32) > np.nonzero(red)[2].mean()))[..., None], (46, 160, 84), right)
    extra = right.copy()
    extra[:, 24:30, 1:7] = (46, 160, 84)
    pale = (right * 0.4 + 240 * 0.6).astype(np.uint8)
    blurred = right.copy()
    for _ in range(3):
        padded = np.pad(blurred.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        blurred = sum(padded[:, y : y + 32, x : x + 32] for y in range(3) for x in range(3)).astype(float) / 9
    noise = np.random.default_rng(0).integers(0, 256, right.shape).astype(np.uint8)
    for wrong in (blank, missing, half, mixed, extra, pale, noise, right[:, ::-1], blurred):
        assert exact(wrong.astype(np.uint8)) == 0
    assert exact(right, "a small blue square below a large red circle") == 1
    assert exact(right, "a large blue circle above a small red square") == 0
    assert exact(right, "a large red circle left of a small blue square") == 0
    assert exact(right, "a large red star above a small blue square") == 0
    other_sizes = shapes.score(right, ["a small red circle above a large blue square"])
    assert other_sizes["exact"] == 1 and other_sizes["exact_with_size"] == 0 and other_sizes["size"] == 0


def test_random_prompts_score_as_chance_does():
    scenes = shapes.scenes(300, seed=8)
    images = shapes.draw(scenes, 32, 32, seed=9)
    score = shapes.score(images, [s.caption for s in shapes.scenes(300, seed=10)])
    assert score["readable"] > 0.99 and score["exact"] < 0.03 and 0.15 < score["relation"] < 0.85


def test_shapes_are_balanced_and_quick():
    start = time.perf_counter()
    scenes = shapes.scenes(2000, seed=11)
    images = shapes.draw(scenes, 32, 32, seed=12)
    assert time.perf_counter() - start < 10  # well under a second on a quiet core
    assert images.shape == (2000, 32, 32, 3) and images.dtype == np.uint8
    counts = Counter(scene.first.shape for scene in scenes)
    assert min(counts.values()) > 400


@pytest.mark.parametrize(
    ("caption", "hint"),
    [
        ("a large redd circle above a small blue square", "red"),
        ("a large red circle above a small blue sqare", "square"),
        ("a cat", "like"),
    ],
)
def test_what_is_no_caption_is_refused_with_a_hint(caption, hint):
    with pytest.raises(LimnerError, match=hint):
        shapes.parse(caption)


def test_pictures_too_small_to_tell_are_refused():
    with pytest.raises(LimnerError, match="24x24"):
        shapes.draw(shapes.scenes(1, 0), 16, 16, 0)


def test_captions_in_chinese_are_read_back():
    scene = shapes.parse("a small red circle left of a large blue square")
    assert scene.chinese == "一个小的红色圆形在一个大的蓝色方块的左边"
    for scene in shapes.scenes(300, seed=1, held_out=True):
        assert shapes.parse(scene.chinese) == scene
    chinese = shapes.captions(shapes.scenes(200, seed=0), "zh")
    pictures = shapes.draw(shapes.scenes(200, seed=0), 32, 32, seed=1)
    assert shapes.score(pictures, chinese) == shapes.score(
        pictures, shapes.captions(shapes.scenes(200, seed=0))
    )
    assert (
        shapes.score(pictures, chinese)["exact"] > 0.99
        and shapes.score(pictures, chinese[::-1])["exact"] < 0.1
    )


@pytest.mark.parametrize(
    ("caption", "meaning"),
    [
        ("小的红色正方形在大的紫色五角星上方", "a small red square above a large purple star"),
        ("一个大黄色三角形在 一个小绿色圆的右侧。", "a large yellow triangle right of a small green circle"),
        ("一个小的黑色星形在一个大的蓝色圆圈的下面", "a small black star below a large blue circle"),
    ],
)
def test_chinese_is_read_as_people_write_it(caption, meaning):
    assert shapes.parse(caption).caption == meaning


def test_prompts_are_in_the_language_that_is_asked_for():
    english = shapes.unseen(40, 3)
    chinese, both = shapes.unseen(40, 3, language="zh"), shapes.unseen(40, 3, language="both")
    assert [shapes.parse(text).caption for text in chinese] == english
    assert both == [zh if i % 2 else en for i, (en, zh) in enumerate(zip(english, chinese, strict=True))]
    assert not {shapes.parse(text).combination for text in shapes.unseen(50, 3, chinese)} & {
        shapes.parse(text).combination for text in english
    }
    with pytest.raises(LimnerError, match=r"write it like 'a large.*一个大的"):
        shapes.parse("一只猫")
