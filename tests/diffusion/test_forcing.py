"""A noise level for each frame: goldens, windows of long clips, and steps that equal those of all frames together."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from limner.core import Denoised
from limner.diffusion.forcing import (
    forcing_levels,
    frame_steps,
    given_counts,
    key_frames,
    random_given,
    random_subclips,
    sliding_windows,
)
from limner.diffusion.paths import STRAIGHT
from limner.diffusion.solvers import Problem, ddim, drive
from tests.helpers import GOLDENS


def test_levels_golden() -> None:
    given, expected = (GOLDENS["diffusion_forcing_levels"][part] for part in ("inputs", "expected"))
    frames, steps = given["frames"], given["steps"]
    assert forcing_levels(frames, steps, given["uncertainty"]) == expected["pyramid"]
    assert forcing_levels(frames, steps, 0) == expected["full_sequence"]
    assert forcing_levels(frames, steps, steps) == expected["autoregressive"]


def test_windows_golden() -> None:
    given, expected = (GOLDENS["sliding_windows"][part] for part in ("inputs", "expected"))
    windows = sliding_windows(given["frames"], given["window"], given["kept"])
    assert [list(window) for window in windows] == expected["windows"]
    assert given_counts(windows) == expected["given"]


@pytest.mark.parametrize(
    ("frames", "kept", "windows"),
    [
        (16, 8, [(0, 16)]),
        (5, 8, [(0, 5)]),
        (64, 4, [(0, 16), (12, 28), (24, 40), (36, 52), (48, 64)]),
        (17, 15, [(0, 16), (1, 17)]),
        (34, 0, [(0, 16), (16, 32), (32, 34)]),
    ],
)
def test_windows_cover_every_frame_once(frames: int, kept: int, windows: list[tuple[int, int]]) -> None:
    found = sliding_windows(frames, 16, kept)
    assert found == windows
    drawn = [f for (a, b), n in zip(found, given_counts(found), strict=True) for f in range(a + n, b)]
    assert drawn == [*range(frames)]


def test_a_window_that_keeps_all_never_ends_and_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot keep 16"):
        sliding_windows(40, 16, 16)


@pytest.mark.parametrize(
    ("frames", "keys"),
    [
        (16, [0, 5, 10, 15]),
        (24, [0, 7, 14, 21]),
        (9, [0, 4, 8]),
        (4, [0, 3]),
        (3, [0, 2]),
        (2, [0, 1]),
        (1, [0]),
    ],
)
def test_key_frames_span_a_clip(frames: int, keys: list[int]) -> None:
    assert list(key_frames(frames)) == keys
    if frames > 3:  # training gives just these to a fifth of the clips that are given any
        torch.manual_seed(0)
        rows = random_given(2000, frames, "cpu").nonzero()
        given = [set(rows[rows[:, 0] == i, 1].tolist()) for i in range(200)]
        assert 25 < sum(row == set(keys) for row in given) < (120 if frames == 4 else 60)


@pytest.mark.parametrize("causal", [False, True])
def test_given_frames_leave_one_to_draw(causal: bool) -> None:
    torch.manual_seed(0)
    given = random_given(4000, 4, "cpu", causal)
    assert given.any(1).float().mean() > 0.95 and not given.all(1).any()
    first = given[:, 0].float().mean()
    assert first > (0.99 if causal else 0.85)
    patterns = {tuple(row) for row in given.tolist()}
    assert (True, False, False, False) in patterns and (True, True, True, False) in patterns
    between = (True, False, False, True)
    assert (between in patterns) != causal
    if causal:
        assert all(sorted(row, reverse=True) == list(row) for row in patterns), "none after one that is drawn"


def test_frames_together_take_the_steps_of_a_solver_and_one_by_one_end_at_the_same_guess() -> None:
    torch.manual_seed(0)
    wanted, x = torch.randn(2, 1, 3, 2, 2).double(), torch.randn(2, 1, 3, 2, 2).double()
    levels = STRAIGHT.levels(4, 1.5)

    def run(table: list[list[int]]) -> torch.Tensor:
        solver = frame_steps(x, levels, table)
        now, *_ = next(solver)
        while True:
            try:  # a denoiser that is not sure: half of the way to the wanted clip
                now, *_ = solver.send((wanted + now) / 2)
            except StopIteration as end:
                return end.value

    *_, last = drive(ddim(Problem(x, levels, STRAIGHT)), lambda x, level: Denoised((wanted + x) / 2))
    together = run(forcing_levels(3, 4, 0))
    assert_close(together, last.x)
    assert_close(run(forcing_levels(3, 4, 4)), together), "each frame's guess is its own here"
    given = [[0, *row] for row in forcing_levels(2, 4, 1)]
    assert torch.equal(run(given)[:, :, 0], x[:, :, 0]), "a frame at level 0 stays"


@pytest.mark.parametrize(
    ("frames", "few", "apart"), [(16, 4, {3, 4, 5}), (16, 1, {1}), (4, 2, {1, 2, 3}), (2, 2, {1})]
)
def test_random_subclips(frames: int, few: int, apart: set[int]) -> None:
    """In order, equally far apart, of the right clip, and all places occur."""
    clips = torch.arange(3.0 * frames).reshape(3, 1, frames, 1, 1)
    torch.manual_seed(0)
    steps, places = set(), set()
    for _ in range(100):
        some, step = random_subclips(clips, few, 2)
        assert some.shape == (6, 1, few, 1, 1)
        steps.add(step)
        place = some.flatten(1) - frames * torch.tensor([0, 1, 2] * 2)[:, None]  # [6, few]
        assert ((place >= 0) & (place < frames)).all() and (place.diff() == step).all()
        places |= set(place.flatten().tolist())
    assert steps == apart and places == set(range(frames))
