"""Measuring clips: distances of clips and of frames, how much they move, copies among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from limner.core import ImageSpec, LimnerError
from limner.data import Data
from limner.evaluation.clips import (
    choose_some,
    films_note,
    measure_movement,
    rates_note,
    ratio_of,
    without_stills,
)
from limner.evaluation.evaluate import evaluate
from limner.evaluation.fidelity import Samples, compute_features, measure_samples
from limner.evaluation.images import Images, frames_of
from limner.evaluation.options import EvaluateOptions
from limner.evaluation.prompts import _exact
from limner.evaluation.real import Real, as_bytes, as_saved
from limner.evaluation.results import Evaluation
from limner.evaluation.spaces import find_all, measure_beside
from limner.evaluation.tables import evaluation_rows
from limner.metrics.motion import motion
from limner.networks.random_clips import moving_leaves

FRAMES, SIDE = 6, 16
SPEC = ImageSpec(3, SIDE, SIDE, frames=FRAMES, rate=8.0)


def packed(clips: torch.Tensor, name: str = "clip") -> Data:
    names = [f"{name}{i}" for i in range(len(clips))]
    return Data(SPEC, name, as_bytes(as_saved(clips)), np.arange(len(clips)), names)


@pytest.fixture(scope="module")
def clips():
    return moving_leaves(130, torch.Generator().manual_seed(0), FRAMES, SIDE)


@pytest.fixture(scope="module")
def real(clips):
    return Real(packed(clips[:60], "training"), packed(clips[60:90], "held"))


def test_every_figure_of_clips_is_measured(clips, real, tmp_path):
    features, *frames = find_all("random", clips=True)
    drawn = Samples(packed(torch.cat([clips[90:125], real.training.batch(np.arange(5)).image])))
    found = measure_samples(drawn, real, features, tmp_path, quiet=True)
    assert found and found.frames == FRAMES and found.rate == 8.0 and found.size == [SIDE, SIDE]
    found = replace(found, other_features=measure_beside(drawn, real, frames, quiet=True))
    assert found.features == "random" and [*found.other_features] == ["random on frames"]
    assert found.features_hash == features.hash != found.other_features["random on frames"].features_hash
    assert found.frechet.value < 2 * found.frechet.floor and found.n == 40
    assert found.motion.low < 1 < found.motion.high and found.jitter.low < 1 < found.jitter.high
    assert found.identical == 5 and 5 / 40 <= found.memorised < 0.3
    assert {path.name for path in tmp_path.iterdir()} == {"nearest.png", "drawn.png"}
    rows = dict(row[:2] for row in evaluation_rows(Evaluation(of="", against=[], fidelity=found)))
    assert rows["measured at, in frames"] == "6, 8 a second"
    for label in ("motion of real clips'", "jitter of real clips'"):
        assert rows[label].endswith(" times")
    assert any(label.endswith("(random on frames)") for label in rows)


def test_clips_that_stand_still_or_are_shuffled_are_far_though_their_frames_are_real(clips, real):
    features, frames = find_all("random", clips=True)
    still = clips[90:, :, :1].expand(-1, -1, FRAMES, -1, -1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for changed, motion_ratio in ((still, 0.0), (clips[90:][:, :, order], 1.5)):
        samples = Samples(packed(changed))
        sets = measure_beside(samples, real, [frames], quiet=True)["random on frames"]
        assert sets.frechet.value < 2 * sets.frechet.floor  # each frame is real
        whole = compute_features(samples, real, features)
        assert (whole.drawn.mean(0) - whole.training.mean(0)).norm() > 1
        moves = measure_movement(Images.of(samples.images, 3), Images.of(real.training, 3))
        assert (
            moves.motion
            and moves.motion.value >= motion_ratio
            and (moves.motion.value == 0) == (not motion_ratio)
        )


def test_a_random_frame_stands_for_each_clip(clips):
    images = Images.of(packed(clips[:20]), 3)
    frames = images.frames(0)
    assert images[:].shape == (20, 3, FRAMES, SIDE, SIDE) and frames[:].shape == (20, 3, SIDE, SIDE)
    assert len(set(frames.frame.tolist())) > 2 and frames_of(images.source) == FRAMES
    some = np.array([3, 11])
    assert_close(frames.part(some)[:], frames[some], rtol=0, atol=0)
    assert_close(frames[some], as_saved(clips[some, :, frames.frame[some]]), rtol=0, atol=1e-6)


def test_a_ratio_of_means_has_an_interval_that_holds_the_truth():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(200):
        drawn, real = (torch.rand(n, generator=generator).double() * scale for n, scale in ((40, 2), (80, 1)))
        found = ratio_of(drawn, real)
        held += found.low <= 2 <= found.high
        assert found.value == pytest.approx(found.drawn / found.real)
    assert held >= 180
    assert ratio_of(torch.ones(5), torch.zeros(5)) is None and ratio_of(torch.ones(5), torch.ones(1)) is None
    assert ratio_of(torch.zeros(5), torch.ones(5)).value == 0


def test_stills_do_not_count_as_real_clips(clips):
    data = packed(clips[:10])
    frames = replace(
        data, pixels=data.array.reshape(-1, SIDE, SIDE, 3), rows=np.arange(10) * FRAMES,
        strides=np.array([1, 0] * 5),
    )  # fmt: skip
    real = without_stills(Real(frames, frames.part(np.arange(2))))
    assert len(real.training) == 5 and len(real.held_out) == 1
    assert float(motion(Images.of(real.training, 3)[:]).min()) > 0


def test_features_of_clips_and_of_images_are_told_apart(tmp_path):
    assert [each.name for each in find_all("imagenet", clips=True)] == ["random", "imagenet on frames"]
    with pytest.raises(LimnerError, match="describe clips"):
        find_all("i3d")
    with pytest.raises(LimnerError, match="--weights"):
        find_all("i3d", clips=True)


def test_notes_say_what_clips_are_of_one_film_and_of_other_rates(clips):
    data = replace(
        packed(clips[:10]), strides=np.ones(10, int), names=[f"film{i // 5}.mp4@{i}" for i in range(10)]
    )
    (note,) = films_note(Real(data.part(np.arange(5)), data.part(np.arange(5, 10))))
    assert "10 real clips are cut from 2 films" in note and not films_note(
        Real(packed(clips[:4]), packed(clips[4:5]))
    )
    slow = replace(data, spec=replace(SPEC, rate=4.0))
    assert "4 frames a second and the real ones 8" in rates_note(slow, data)[0] and not rates_note(data, data)


def test_an_oracle_is_given_whole_clips(clips):
    class Oracle:
        def score(self, images: np.ndarray, captions: list[str]) -> dict[str, float]:
            assert images.shape == (4, FRAMES, SIDE, SIDE, 3) and images.dtype == np.uint8
            return {"exact": 0.5}

    assert _exact(Oracle(), as_bytes(as_saved(clips[:4])), ["a"] * 4) == 0.5


def write_clips(folder: Path, clips: torch.Tensor) -> Path:
    folder.mkdir()
    for i, clip in enumerate(as_bytes(as_saved(clips))):
        first, *rest = map(Image.fromarray, clip)
        first.save(folder / f"{i:03d}.webp", save_all=True, append_images=rest, duration=125, lossless=True)
    return folder


def test_a_folder_of_clips_is_measured_at_its_frames(clips, tmp_path):
    made, known = write_clips(tmp_path / "made", clips[:24]), write_clips(tmp_path / "real", clips[24:84])
    options = EvaluateOptions(clip_frames=FRAMES, features="random")
    found = evaluate(made, [str(known)], options, to=tmp_path / "out", quiet=True)
    assert found and found.fidelity and found.fidelity.frames == FRAMES and found.fidelity.n == 24
    assert found.fidelity.rate == pytest.approx(8) and found.fidelity.motion
    assert (tmp_path / "out" / "evaluation.json").exists()
    with pytest.raises(LimnerError, match="5 real clips are too few"):
        evaluate(
            made, [str(write_clips(tmp_path / "few", clips[:5]))], options, to=tmp_path / "no", quiet=True
        )


def test_of_many_real_clips_a_random_part_is_described(clips, monkeypatch):
    real = Real(packed(clips[:80]), packed(clips[80:100], "held"))
    assert choose_some(real, 10, 0) is real
    monkeypatch.setattr("limner.evaluation.clips.REAL", 20)
    some = choose_some(real, 10, 0)
    assert len(some) == 30 and 0 < len(some.held_out) < 20
    assert {*some.training.names} < {*real.training.names} and {*some.held_out.names} < {*real.held_out.names}
    assert_close(
        Images.of(some.held_out, 3)[:1], as_saved(clips[80 + some.held_out.rows[:1]]), rtol=0, atol=1e-6
    )
