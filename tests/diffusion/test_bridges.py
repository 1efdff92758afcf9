"""Bridges: their public numbers, and the solver where the answer is known."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from limner.core import Denoised
from limner.diffusion import solvers
from limner.diffusion.bridges import BridgePath, SchrodingerBridge, StraightBridge, bridge_point, brownian
from limner.diffusion.paths import STRAIGHT, NoiseLevel
from limner.diffusion.solvers import Problem
from tests.helpers import golden

PATHS = [StraightBridge(0.3), StraightBridge(0.0), SchrodingerBridge.symmetric()]
every_path = pytest.mark.parametrize("path", PATHS, ids=["straight", "no noise", "i2sb"])


def scalar(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_a_point_of_the_straight_bridge():
    inputs, expected = golden("bridge_matching")
    t = inputs["t"]
    wanted, given, noise = (torch.full_like(t, inputs[name]) for name in ("wanted", "given", "noise"))
    assert_close(bridge_point(StraightBridge(inputs["sigma"]), wanted, given, noise, t), expected["x_t"])


def test_one_step_from_the_given_picture_is_the_guess():
    inputs, expected = golden("bridge_matching")
    bridge = StraightBridge(inputs["sigma"])
    problem = Problem(scalar(inputs["given"]), bridge.levels(1), STRAIGHT)
    *_, step = solvers.drive(brownian(problem, bridge), lambda x, level: Denoised(scalar(inputs["wanted"])))
    assert_close(step.x, scalar(expected["one_step_from_the_given"]))


def test_schedule_of_i2sb():
    inputs, expected = golden("i2sb_bridge")
    bridge = SchrodingerBridge(inputs["betas"])
    t = 1 - (torch.arange(len(inputs["betas"])) + 1) / len(inputs["betas"])
    of_wanted, of_given, std = bridge.weights(t)
    assert_close(of_wanted, expected["weight_x0"])
    assert_close(of_given, expected["weight_x1"])
    assert_close(std, expected["std_bridge"])
    assert_close((bridge.left(t) * bridge.variance).sqrt(), expected["std_forward"])
    assert_close(SchrodingerBridge.symmetric(8).forward, inputs["betas"].cumsum(0))


def test_a_step_of_i2sb():
    inputs, expected = golden("i2sb_bridge")
    bridge, n = SchrodingerBridge(inputs["betas"]), inputs["step"]
    t = scalar(1 - (n + 1) / len(inputs["betas"]))
    ends = scalar(inputs["x0"]), scalar(inputs["x1"])
    assert_close(bridge_point(bridge, *ends, torch.zeros_like(t), t), scalar(expected["mean_at_step"]))
    levels = [bridge.level(n), bridge.level(inputs["earlier"])]

    def step(eta: float, noise: float) -> Tensor:
        problem = Problem(scalar(inputs["x_n"]), levels, STRAIGHT, lambda: scalar(noise))
        *_, last = solvers.drive(brownian(problem, bridge, eta), lambda x, level: Denoised(ends[0]))
        return last.x

    assert_close(step(0.0, 1.0), scalar(expected["ode_step"]))
    assert_close(step(1.0, 0.0), scalar(expected["posterior_mean"]))
    assert_close((step(1.0, 1.0) - step(1.0, 0.0)).square(), scalar(expected["posterior_var"]))


@every_path
def test_levels_lead_from_the_given_picture_to_the_wanted_one(path: BridgePath):
    for steps in (1, 2, 7, 16):
        levels = path.levels(steps)
        assert len(levels) == steps + 1
        assert levels[0].time == 0 and levels[0].sigma == pytest.approx(1, abs=0.03)
        assert (levels[-1].alpha, levels[-1].sigma) == (1, 0)
        assert all(one.sigma > other.sigma for one, other in pairwise(levels))


@every_path
def test_with_the_truth_for_a_guess_points_keep_the_spread_of_the_path(path: BridgePath):
    """Where every step is drawn with the truth known, x at each level is as training has it."""
    wanted, given = torch.full((4000, 1), 0.5), torch.full((4000, 1), -0.5)
    noise = iter(torch.randn(20, 4000, 1, generator=torch.Generator().manual_seed(0)))
    problem = Problem(given, path.levels(6), STRAIGHT, lambda: next(noise))
    steps = list(solvers.drive(brownian(problem, path), lambda x, level: Denoised(wanted)))
    for step, level in zip(steps, problem.levels[1:], strict=True):
        if level.sigma:
            std = float(path.weights(torch.tensor([level.time], dtype=torch.float64))[2])
            assert float(step.x.std()) == pytest.approx(std, rel=0.08, abs=1e-6)
            assert float(step.x.mean()) == pytest.approx(level.alpha - 0.5, abs=0.03)
    assert_close(steps[-1].x, wanted)


def test_without_noise_a_step_is_eulers():
    def guess(x: Tensor, level: NoiseLevel) -> Denoised:
        return Denoised(torch.tanh(2 * x + level.time))

    start = torch.linspace(-1, 1, 9, dtype=torch.float64)
    path = StraightBridge(0.7)
    problem = Problem(start, path.levels(5), STRAIGHT)
    for solver in (brownian(problem, StraightBridge(0.0)), brownian(problem, path, eta=0.0)):
        *_, ours = solvers.drive(solver, guess)
        *_, theirs = solvers.drive(solvers.euler(problem), guess)
        assert_close(ours.x, theirs.x)
    assert not math.isnan(float(ours.x.sum()))
