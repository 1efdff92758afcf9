"""The oracle of moving: what it reads of real clips, of shuffled ones, and of clips that break."""

import numpy as np
import pytest

from limner.data import open_data
from limner.data.sources.moving import source
from limner.data.sources.moving.digits import digit_cover
from limner.data.sources.moving.draw import Clip, shape_cover
from limner.data.sources.moving.motion import Track, fit, motion_of
from limner.data.sources.moving.oracle import OF_DIGITS, OF_SHAPES
from limner.settings import DataOptions, LimnerError

COVERS = {OF_SHAPES: shape_cover, OF_DIGITS: digit_cover}


def clips(oracle, n, seed=1, size=(32, 32), frames=16, rate=8.0):
    scenes = oracle.scenes(n, seed, held_out=True)
    drawn = [Clip(scene, i, COVERS[oracle]).draw(*size, frames, rate) for i, scene in enumerate(scenes)]
    return np.stack(drawn), [scene.caption for scene in scenes]


def drawn(caption, frames=16, seed=0):
    return Clip(OF_SHAPES.parse(caption), seed).draw(32, 32, frames)


def exact(clip, caption):
    return OF_SHAPES.score(clip[None], [caption])["exact"]


@pytest.mark.parametrize(
    ("oracle", "size", "frames", "rate"),
    [
        (OF_SHAPES, (32, 32), 16, 8.0),
        (OF_SHAPES, (24, 40), 16, 12.0),
        (OF_SHAPES, (64, 48), 8, 30.0),
        (OF_SHAPES, (32, 32), 40, 4.0),
        (OF_DIGITS, (32, 32), 16, 8.0),
    ],
)
def test_the_oracle_reads_real_clips_and_not_shuffled_ones(oracle, size, frames, rate):
    real, texts = clips(oracle, 40, size=size, frames=frames, rate=rate)
    score = oracle.score(real, texts)
    assert score["exact"] >= 0.98 and score["exact_with_size"] >= 0.98 and score["kept"] == 1
    order = np.random.default_rng(0)
    shuffled = np.stack([clip[order.permutation(frames)] for clip in real])
    assert oracle.score(shuffled, texts)["exact"] <= 0.05
    assert oracle.score(real, texts[::-1])["exact"] <= 0.1


def test_frames_alone_are_read_without_motions():
    real, texts = clips(OF_SHAPES, 40)
    score = OF_SHAPES.score(real[:, 0], texts)
    assert score["exact"] == score["shape"] == score["colour"] == score["size"] == 1
    assert OF_SHAPES.score(real[:, 0], texts[::-1])["exact"] < 0.2


@pytest.mark.parametrize(
    ("caption", "turned", "frames"),
    [
        ("a small red star moves left", "a small red star moves right", 20),
        ("a small red star moves up and right", "a small red star moves down and left", 20),
        ("a small blue circle grows", "a large blue circle shrinks", 24),
        ("a large black square stands", "a large black square stands", 24),
        ("a small green triangle bounces off the edges", "a small green triangle bounces off the edges", 40),
    ],
)
def test_played_backwards_a_clip_shows_the_opposite_motion(caption, turned, frames):
    every = [Clip(OF_SHAPES.parse(caption), seed).draw(32, 32, 60, 30.0)[:frames] for seed in range(8)]
    stop = [bool((clip[-3] == clip[-1]).all()) for clip in every]
    going = [clip for clip, stops in zip(every, stop, strict=True) if not stops or caption.endswith("stands")]
    assert len(going) >= 3
    for clip in going:
        assert exact(clip, caption) == 1 and exact(clip[::-1], turned) == 1
        assert (exact(clip[::-1], caption) == 1) == (turned == caption)


def test_what_starts_late_does_not_move_as_told():
    caption = "a small red star moves left"
    clip = next(
        clip for clip in (drawn(caption, 40, seed) for seed in range(9)) if (clip[-9:] == clip[-1]).all()
    )
    assert exact(clip, caption) == 1 and exact(clip[::-1], "a small red star moves right") == 0


def test_a_clip_that_breaks_is_read_up_to_there():
    caption = "a small red star moves down and a large blue square stands"
    clip = drawn(caption)
    other = drawn(caption.replace("star", "circle"))
    (reading,) = OF_SHAPES.read(clip[None])
    assert reading.broken_at is None and reading.kept == 16 and np.isfinite(reading.places).all()
    (changed,) = OF_SHAPES.read(np.concatenate([clip[:9], other[9:]])[None])
    assert changed.broken_at == changed.kept == 9 and changed.motions == reading.motions
    jumped = clip.copy()
    jumped[11:] = clip[0]
    (strayed,) = OF_SHAPES.read(jumped[None])
    assert strayed.kept == 16 and 10 <= strayed.broken_at <= 12
    gone = clip.copy()
    gone[5] = np.median(clip[5], (0, 1))
    assert OF_SHAPES.read(gone[None])[0].broken_at == 5
    for wrong in (changed, strayed):
        assert not wrong.right(OF_SHAPES.parse(caption))["exact"]


def test_whatever_a_clip_shows_is_read():
    """Also two things that flicker and touch, in few frames, as a run that is hardly trained may draw them."""
    frames = [
        drawn(f"a {size} red star stands and a small blue circle stands", 1, 3)[0]
        for size in ("small", "large")
    ]
    wide = np.abs(frames[0].astype(int) - np.median(frames[0], (0, 1))).sum(-1) > 100
    shifted = np.where(np.roll(wide, 5, 1)[..., None], np.roll(frames[0], 5, 1), frames[1])
    for clip in (frames, [frames[0], shifted], [shifted, frames[1]], [shifted, *frames]):
        (reading,) = OF_SHAPES.read(np.stack(clip)[None])
        assert 0 <= reading.kept <= len(clip)
    random = np.random.default_rng(0).integers(0, 256, (4, 5, 32, 32, 3), dtype=np.uint8)
    assert [reading.kept for reading in OF_SHAPES.read(random)] == [0] * 4


def test_passing_in_front_is_not_passing_behind():
    caption = "a small red star passes behind a large blue circle"
    clip = drawn(caption)
    stain = clip.astype(int) - np.median(clip[0], (0, 1))
    is_star = (stain[..., 0] > stain[..., 2] + 40)[..., None]
    (reading,) = OF_SHAPES.read(clip[None])
    assert "passes behind" in reading.motions
    # The star as it looks at first, at the places that it passes, over the circle.
    first, in_front = clip[0], clip.copy()
    mover = reading.motions.index("passes behind")
    for t, place in enumerate(reading.places[mover]):
        shift = np.rint((place - reading.places[mover, 0]) * 32).astype(int)
        moved = np.roll(np.where(is_star[0], first, 0), (shift[1], shift[0]), (0, 1))
        in_front[t] = np.where(moved > 0, moved, in_front[t])
    assert exact(clip, caption) == 1 and exact(in_front, caption) == 0


def test_the_oracle_is_not_fooled():
    caption = "a large red circle moves left"
    clip = drawn(caption).astype(float)
    paper = np.median(clip, (1, 2), keepdims=True)
    half = clip.copy()
    half[:, :16] = paper
    blurred = (clip + np.roll(clip, 3, 1) + np.roll(clip, 3, 2) + np.roll(clip, -3, 1)) / 4
    wrong = {
        "frozen": np.repeat(clip[:1], 16, 0),
        "paper": np.broadcast_to(paper, clip.shape),
        "noise": np.random.default_rng(0).uniform(0, 255, clip.shape),
        "pale": 0.5 * clip + 0.5 * paper,
        "blurred": blurred,
        "with another": np.where(drawn("a small black square stands") < 120, 46, clip),
        "half": np.where(np.arange(16)[:, None, None, None] < 8, clip, half),
        "jitter of 5 pixels": np.stack([np.roll(f, 5 * (i % 2), 0) for i, f in enumerate(clip)]),
    }
    for name, changed in wrong.items():
        assert exact(changed.astype(np.uint8), caption) == 0, name
    noisy = clip + np.random.default_rng(0).normal(0, 6, clip.shape)
    jitter = np.stack([np.roll(frame, i % 2, 0) for i, frame in enumerate(clip)])
    for name, alike in {"noisy": noisy, "jitter of a pixel": jitter}.items():
        assert exact(np.clip(alike, 0, 255).astype(np.uint8), caption) == 1, name


def test_sizes_are_told_apart_from_what_moves():
    shown = OF_SHAPES.score(drawn("a large red star moves left")[None], ["a small red star moves left"])
    assert shown["exact"] == 1 and shown["exact_with_size"] == shown["size"] == 0
    with pytest.raises(LimnerError, match="like"):
        OF_SHAPES.score(drawn("a large red star moves left")[None], ["a cat"])


def test_clips_are_compared_by_what_they_show():
    real, _ = clips(OF_SHAPES, 12)
    assert OF_SHAPES.compare(real, real)["exact"] == 1
    moved = OF_SHAPES.compare(np.roll(real, 2, 3), real)
    assert moved["place"] < 0.2 and moved["things"] > 0.8
    with pytest.raises(LimnerError, match="Clip 0 to compare with"):
        OF_SHAPES.compare(real, np.zeros_like(real))


def test_fits_find_where_a_motion_stops():
    frames = np.arange(16)
    values = 0.8 - 0.04 * np.minimum(frames, 9.5)[:, None]
    found = fit(frames, values)
    assert found.until == 9.5 and np.allclose(found.at(frames), values) and found.explained > 0.999
    seen = np.array([0, 1, 2, 12, 13, 14, 15])  # hidden in between
    assert np.allclose(fit(seen, values[seen]).at(frames), values)
    assert fit(frames, 0.8 - 0.02 * frames[:, None]).until == np.inf


def test_motions_are_told_by_their_places():
    t = np.arange(24.0)
    still = np.full(24, 0.5)
    ways = {
        "stands": (still, still),
        "moves right": (0.2 + 0.02 * t, still),
        "moves up and left": (0.8 - 0.02 * t, 0.8 - 0.02 * t),
        "bounces off the edges": (0.18 + np.abs((0.3 + 0.07 * t) % 1.28 - 0.64), still),
    }
    for name, (x, y) in ways.items():
        track = Track(np.arange(24), np.stack([x, y], 1), np.full(24, 0.14))
        assert motion_of(track, (32, 32)) == name
    turning = np.where(t < 12, 0.3 + 0.02 * t, 0.78 - 0.02 * t)  # in the middle of the picture
    assert motion_of(Track(np.arange(24), np.stack([turning, still], 1), np.full(24, 0.14)), (32, 32)) is None


@pytest.mark.parametrize("name", ["moving", "moving-digits"])
def test_the_data_has_its_oracle(name, monkeypatch):
    monkeypatch.setattr(source, "CLIPS", 24)
    data = open_data(name, size=(32, 32), options=DataOptions(frames=16, language="both"), progress=False)
    assert data.oracle.score(data.array, data.captions)["exact"] == 1
    assert data.oracle.unseen(5, 0, data.captions)
    stills = open_data(name, size=(32, 32), progress=False)
    assert stills.oracle.score(stills.array, stills.captions)["exact"] == 1
