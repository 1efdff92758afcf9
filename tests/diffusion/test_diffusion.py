"""Paths, solvers and guidance against numbers and problems whose answer is known."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from limner.diffusion import paths
from limner.diffusion.objectives import denoised
from limner.diffusion.sampling import guide
from tests.helpers import golden


def test_the_straight_path_matches_the_golden_numbers():
    data = torch.tensor([[0.254, 0.026, -0.172], [-1.011, 0.777, -1.061]], dtype=torch.float64)
    noise = torch.tensor([[0.01, -1.895, -1.366], [0.368, 0.752, 0.966]], dtype=torch.float64)
    t = torch.tensor([0.25, 0.8], dtype=torch.float64)
    x_t = torch.tensor([[0.071, -1.41475, -1.0675], [-0.7352, 0.772, -0.6556]], dtype=torch.float64)
    v = torch.tensor([[0.244, 1.921, 1.194], [-1.379, 0.025, -2.027]], dtype=torch.float64)
    assert_close(paths.noised(paths.STRAIGHT, data, noise, t), x_t, rtol=1e-12, atol=1e-12)
    assert_close(paths.velocity(data, x_t, t), v, rtol=1e-12, atol=1e-12)
    assert_close(data - noise, v, rtol=1e-12, atol=1e-12)


def test_guidance_matches_the_golden_numbers_and_one_is_none():
    conditional = torch.tensor([[0.186, -0.484, -0.881], [-0.5, 0.088, -0.07]], dtype=torch.float64)
    unconditional = torch.tensor([[-1.784, -0.091, 0.875], [-1.107, -0.756, 1.243]], dtype=torch.float64)
    expected = torch.tensor([[1.171, -0.6805, -1.759], [-0.1965, 0.51, -0.7265]], dtype=torch.float64)
    assert_close(guide(conditional, unconditional, 1.5), expected, rtol=1e-12, atol=1e-12)
    assert_close(guide(conditional, unconditional, 1.0), conditional)
    assert_close(guide(conditional, unconditional, 0.0), unconditional)


@pytest.mark.parametrize("sigma_floor", [0.0, 0.05])
def test_the_velocity_leads_back_to_the_data(sigma_floor):
    x_t, data = torch.randn(2, 5, 3, 4, 6, dtype=torch.float64)
    t = torch.tensor([0.0, 0.3, 0.7, 0.96, 0.999], dtype=torch.float64)
    v = paths.velocity(data, x_t, t, sigma_floor)
    sigma = paths.expand_dims((1 - t).clamp(min=sigma_floor), x_t)
    found = denoised("velocity", paths.Straight(), x_t, v, 1 - sigma, sigma).data
    assert_close(found, data, rtol=1e-10, atol=1e-10)


def test_times_are_logit_normal():
    torch.manual_seed(0)
    t = paths.training_times(50_000, -0.5, 1.2, 0.0, "cpu")
    assert_close(torch.logit(t).mean().item(), -0.5, rtol=0, atol=0.03)
    assert_close(torch.logit(t).std().item(), 1.2, rtol=0, atol=0.03)


def test_stratified_numbers_are_uniform_and_one_from_each_part():
    torch.manual_seed(0)
    drawn = torch.stack([paths.stratified(8) for _ in range(4000)])
    parts = (drawn * 8).long().sort(dim=1).values
    assert torch.equal(parts, torch.arange(8).expand(4000, 8))
    assert_close(drawn.mean(0), torch.full((8,), 0.5), rtol=0, atol=0.03)  # in any place of a batch
    assert_close(drawn.var(0), torch.full((8,), 1 / 12), rtol=0, atol=0.005)


def test_shift_keeps_the_ends_and_moves_steps_to_the_noise():
    plain, shifted = ([level.time for level in paths.Straight().levels(8, shift)] for shift in (1, 3))
    assert plain == pytest.approx([i / 8 for i in range(9)])
    assert shifted[0] == 0 and shifted[-1] == 1
    assert all(b < a for a, b in zip(plain[1:-1], shifted[1:-1], strict=True))
    assert all(a < b for a, b in pairwise(shifted))


def test_the_noise_schedule_between_its_steps():
    given, expected = golden("dpmsolver_noise_schedule")
    path = paths.Discrete(paths.betas("linear", 1000))
    levels = [path.level(t * 1000 - 1) for t in given["t"].tolist()]
    assert [math.log(level.alpha) for level in levels] == pytest.approx(expected["log_alpha"].tolist())
    assert [level.log_snr for level in levels] == pytest.approx(expected["lambda_"].tolist())


ALL = {
    "straight": paths.Straight(),
    "exploding": paths.Exploding(),
    "linear": paths.Discrete(paths.betas("linear", 1000)),
    "cosine": paths.Discrete(paths.betas("cosine", 200)),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_every_path_leads_from_noise_to_data(name, steps):
    levels = ALL[name].levels(steps)
    assert len(levels) == steps + 1 and (levels[-1].alpha, levels[-1].sigma) == (1, 0)
    assert all(a.ratio > b.ratio for a, b in pairwise(levels))
    assert levels[0].signal < 0.02
    for level in levels[1:-1]:
        assert ALL[name].at(level.ratio).ratio == pytest.approx(level.ratio)
        assert ALL[name].at(level.ratio).time == pytest.approx(level.time, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("spacing", ["even", "ddim", "quadratic", "snr", "karras"])
def test_spacings_of_discrete_times(spacing):
    levels = ALL["linear"].levels(20, spacing)
    assert len(levels) == 21
    assert all(a.time > b.time for a, b in pairwise(levels[:-1]))
    if spacing in ("even", "snr", "karras"):
        assert (levels[0].time, levels[-2].time) == pytest.approx((999, 0), abs=1e-6)


def test_times_in_training_are_those_of_the_levels():
    path, level = ALL["straight"], ALL["straight"].at(0.7)
    t = torch.tensor([level.time], dtype=torch.float64)
    assert path.alpha(t).item() == pytest.approx(level.alpha)
    assert path.sigma(t).item() == pytest.approx(level.sigma)
    data, noise = torch.randn(2, 1, 3, dtype=torch.float64)
    assert_close(paths.noised(path, data, noise, t), level.alpha * data + level.sigma * noise)
