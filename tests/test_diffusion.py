"""Paths, solvers and guidance against numbers and problems whose answer is known."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from limner.diffusion import paths, solvers
from limner.diffusion.guidance import guide


def test_the_straight_path_matches_the_golden_numbers():
    data = torch.tensor([[0.254, 0.026, -0.172], [-1.011, 0.777, -1.061]], dtype=torch.float64)
    noise = torch.tensor([[0.01, -1.895, -1.366], [0.368, 0.752, 0.966]], dtype=torch.float64)
    t = torch.tensor([0.25, 0.8], dtype=torch.float64)
    x_t = torch.tensor([[0.071, -1.41475, -1.0675], [-0.7352, 0.772, -0.6556]], dtype=torch.float64)
    v = torch.tensor([[0.244, 1.921, 1.194], [-1.379, 0.025, -2.027]], dtype=torch.float64)
    assert_close(paths.interpolate(data, noise, t), x_t, rtol=1e-12, atol=1e-12)
    assert_close(paths.velocity(data, x_t, t), v, rtol=1e-12, atol=1e-12)
    assert_close(data - noise, v, rtol=1e-12, atol=1e-12)


def test_guidance_matches_the_golden_numbers_and_one_is_none():
    conditional = torch.tensor([[0.186, -0.484, -0.881], [-0.5, 0.088, -0.07]], dtype=torch.float64)
    unconditional = torch.tensor([[-1.784, -0.091, 0.875], [-1.107, -0.756, 1.243]], dtype=torch.float64)
    expected = torch.tensor([[1.171, -0.6805, -1.759], [-0.1965, 0.51, -0.7265]], dtype=torch.float64)
    assert_close(guide(conditional, unconditional, 1.5), expected, rtol=1e-12, atol=1e-12)
    assert_close(guide(conditional, unconditional, 1.0), conditional)
    assert_close(guide(conditional, unconditional, 0.0), unconditional)


@pytest.mark.parametrize("nearest", [0.0, 0.05])
def test_velocity_and_data_are_each_others_inverse(nearest):
    x_t, data = torch.randn(2, 5, 3, 4, 6, dtype=torch.float64)
    t = torch.tensor([0.0, 0.3, 0.7, 0.96, 0.999], dtype=torch.float64)
    there = paths.velocity(data, x_t, t, nearest)
    assert_close(paths.data(there, x_t, t, nearest), data, rtol=1e-10, atol=1e-10)


def test_times_are_logit_normal():
    torch.manual_seed(0)
    t = paths.logit_normal(torch.rand(50_000).clamp(1e-6, 1 - 1e-6), -0.5, 1.2)
    assert_close(torch.logit(t).mean().item(), -0.5, rtol=0, atol=0.03)
    assert_close(torch.logit(t).std().item(), 1.2, rtol=0, atol=0.03)


def test_even_numbers_are_uniform_and_one_from_each_part():
    torch.manual_seed(0)
    drawn = torch.stack([paths.evenly(8) for _ in range(4000)])
    parts = (drawn * 8).long().sort(dim=1).values
    assert torch.equal(parts, torch.arange(8).expand(4000, 8))
    assert_close(drawn.mean(0), torch.full((8,), 0.5), rtol=0, atol=0.03)  # in any place of a batch
    assert_close(drawn.var(0), torch.full((8,), 1 / 12), rtol=0, atol=0.005)


def _error(solve, steps: int) -> float:
    """Of x' = x cos(3 t), x(0) = 1, at t = 1; the answer is exp(sin(3) / 3)."""
    start = torch.ones(1, dtype=torch.float64)
    *_, end = solve(lambda x, t: x * math.cos(3 * t), start, solvers.times(steps))
    return abs(end.item() - math.exp(math.sin(3) / 3))


def test_euler_is_of_first_order():
    assert math.log2(_error(solvers.euler, 200) / _error(solvers.euler, 400)) == pytest.approx(1, abs=0.05)


def test_heun_is_of_second_order_but_for_its_last_step():
    """Its one Euler step of length 1/n errs by a constant / n^2: the whole stays of second order."""
    assert math.log2(_error(solvers.heun, 200) / _error(solvers.heun, 400)) == pytest.approx(2, abs=0.05)


def test_solvers_yield_every_step_and_start_and_end_where_told():
    seen = []
    drawn = list(
        solvers.heun(lambda x, t: seen.append(t) or torch.ones_like(x), torch.zeros(3), solvers.times(4))
    )
    assert len(drawn) == 4 and len(seen) == 7
    assert max(seen) < 1  # the velocity towards the data is not asked for at the data
    assert_close(drawn[-1], torch.ones(3))


def test_shift_keeps_the_ends_and_moves_steps_to_the_noise():
    plain, shifted = solvers.times(8), solvers.times(8, shift=3)
    assert plain == pytest.approx([i / 8 for i in range(9)])
    assert shifted[0] == 0 and shifted[-1] == 1
    assert all(b < a for a, b in zip(plain[1:-1], shifted[1:-1], strict=True))
    assert all(a < b for a, b in pairwise(shifted))
