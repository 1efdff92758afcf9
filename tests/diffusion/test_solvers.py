"""Solvers where the answer is known: goldens, and data that is one Gaussian, whose denoiser is exact."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from limner.core import Condition, Draws
from limner.diffusion import solvers
from limner.diffusion.paths import CLEAN, Discrete, Exploding, Level, Straight, betas, karras
from limner.diffusion.sampling import Guess, Knobs, draw
from tests.helpers import golden

MEAN, SPREAD = 0.3, 0.5


def denoise(x: Tensor, level: Level) -> Tensor:
    """E[data | x] for data ~ N(MEAN, SPREAD^2)."""
    a, s = level.alpha, level.sigma
    return (SPREAD**2 * a * x + s**2 * MEAN) / (a**2 * SPREAD**2 + s**2)


def exact(x: Tensor, now: Level, then: Level) -> Tensor:
    """Where the ODE carries x: it keeps each point's place within the Gaussian."""

    def spread(level: Level) -> float:
        return math.hypot(level.alpha * SPREAD, level.sigma)

    return then.alpha * MEAN + spread(then) / spread(now) * (x - now.alpha * MEAN)


def last(steps):
    *_, x = steps
    return x


# ---- goldens


def test_karras_levels():
    _, expected = golden("edm_sigmas")
    for n in (5, 18, 40):
        assert karras(n, 0.002, 80) == pytest.approx(expected[f"n{n}"].tolist(), rel=1e-12)


def test_heun_with_karras_levels():
    given, expected = golden("edm_heun_gaussian")
    for steps in (5, 18):
        found = last(solvers.heun(denoise, 80 * given["latents"], Exploding().levels(steps)))
        assert_close(found, expected[f"steps{steps}"], rtol=1e-9, atol=1e-9)


def test_dpm_solver_on_the_exploding_path():
    given, expected = golden("k_dpmpp_2m_gaussian")
    levels = [Level(1.0, sigma, sigma) for sigma in given["sigmas"].tolist()]
    assert_close(
        last(solvers.dpm_2m(denoise, 80 * given["latents"], levels)), expected["x"], rtol=1e-9, atol=1e-9
    )


def vp(t: float) -> Level:
    """The continuous linear schedule from beta 0.1 to 20."""
    log_alpha = -(t**2) / 4 * 19.9 - t / 2 * 0.1
    return Level(math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha)), t)


def vp_at(log_snr: float) -> Level:
    square = 0.1**2 + 2 * 19.9 * math.log1p(math.exp(-2 * log_snr))
    return vp((math.sqrt(square) - 0.1) / 19.9)


def in_snr(steps: int) -> list[Level]:
    first, final = vp(1.0).log_snr, vp(1e-3).log_snr
    return [vp_at(first + (final - first) * i / steps) for i in range(steps + 1)]


@pytest.mark.parametrize(
    ("name", "solve", "levels"),
    [
        ("1_time_uniform_10", solvers.ddim, [vp(1 + (1e-3 - 1) * i / 10) for i in range(11)]),
        ("2M_time_uniform_10", solvers.dpm_2m, [vp(1 + (1e-3 - 1) * i / 10) for i in range(11)]),
        ("2M_logSNR_10", solvers.dpm_2m, in_snr(10)),
        ("3M_logSNR_10", solvers.dpm_3m, in_snr(10)),
    ],
)
def test_dpm_solver_on_the_variance_preserving_path(name, solve, levels):
    given, expected = golden("dpmsolverpp_gaussian")
    assert_close(last(solve(denoise, given["x_T"], levels)), expected[name], rtol=1e-9, atol=1e-9)


# ---- orders

ORDERS = [
    ("euler", solvers.euler, 1),
    ("ddim", solvers.ddim, 1),
    ("heun", solvers.heun, 2),
    ("dpm2m", solvers.dpm_2m, 2),
    ("unipc, order 2", partial(solvers.unipc, order=2), 3),  # its corrector adds one
    ("dpm3m", solvers.dpm_3m, 2),  # its first two steps are of lower order, and are seen in the end
    ("unipc", solvers.unipc, 3),
]


def error(solve, levels: list[Level]) -> float:
    x = torch.tensor([-1.2, 0.4, 2.0], dtype=torch.float64)
    return float((last(solve(denoise, x, levels)) - exact(x, levels[0], levels[-1])).abs().max())


@pytest.mark.parametrize(("name", "solve", "order"), ORDERS, ids=[name for name, *_ in ORDERS])
def test_halving_the_steps_shows_the_order(name, solve, order):
    """Between levels that are finite; steps are even in log alpha / sigma."""
    errors = [error(solve, in_snr(n)) for n in (160, 320)]
    assert math.log2(errors[0] / errors[1]) > order - 0.15


def test_more_order_errs_less():
    errors = {name: error(solve, in_snr(40)) for name, solve, _ in ORDERS}
    assert errors["unipc"] < errors["unipc, order 2"] < errors["dpm2m"] < errors["euler"]
    assert errors["dpm3m"] < errors["dpm2m"]


@pytest.mark.parametrize(
    "path", [Straight(), Exploding(), Discrete(betas("linear", 1000))], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("solve", [s for _, s, _ in ORDERS], ids=[n for n, *_ in ORDERS])
def test_every_solver_ends_at_the_data_on_every_path(path, solve):
    """Also where a path begins with noise alone or ends with none, whose log alpha / sigma is infinite."""
    levels = path.levels(100)
    assert error(solve, levels) < 0.03


# ---- one call, order and noise


def test_euler_is_ddim_without_noise_on_every_path():
    x = torch.randn(5, dtype=torch.float64)
    for path in (Straight(), Exploding(), Discrete(betas("cosine", 50))):
        levels = path.levels(6)
        assert_close(last(solvers.euler(denoise, x, levels)), last(solvers.ddim(denoise, x, levels)))


@pytest.mark.parametrize(
    ("name", "calls"), [("euler", 8), ("ddim", 8), ("heun", 15), ("dpm2m", 8), ("dpm3m", 8), ("unipc", 8)]
)
def test_calls_of_the_network(name, calls):
    seen = []
    solve = {n: s for n, s, _ in ORDERS}[name]
    drawn = list(solve(lambda x, l: seen.append(l) or denoise(x, l), torch.zeros(3), Straight().levels(8)))
    assert len(drawn) == 8 and len(seen) == calls
    assert all(level.sigma for level in seen), "at the data no network is asked"


def test_the_posterior_by_its_definition():
    """q(x' | x, data) of two levels, from the joint Gaussian of x' and x."""
    path = Discrete(betas("linear", 100))
    now, then = path.level(60), path.level(59)
    shrink = now.alpha / then.alpha
    a, b, variance = solvers.posterior(now, then)
    covariance = shrink * then.sigma**2
    assert a == pytest.approx(covariance / now.sigma**2)
    assert b == pytest.approx(then.alpha - a * now.alpha)
    assert variance == pytest.approx(then.sigma**2 - covariance**2 / now.sigma**2)
    assert solvers.added_variance(now, then) == pytest.approx(float(path.betas[60]))


@pytest.mark.parametrize(
    "solve",
    [
        lambda d, x, levels, noise: solvers.ancestral(lambda x, l: (d(x, l), 0.0), x, levels, noise),
        lambda d, x, levels, noise: solvers.ancestral(
            lambda x, l: (d(x, l), torch.ones_like(x)), x, levels, noise
        ),
        lambda d, x, levels, noise: solvers.ddim(d, x, levels, 1.0, noise),
        lambda d, x, levels, noise: solvers.heun(d, x, levels, 30.0, noise, Exploding().at, churn_noise=1.0),
    ],
    ids=["ancestral", "ancestral, large", "ddim, eta 1", "heun, churn"],
)
def test_solvers_that_draw_noise_keep_the_distribution(solve):
    torch.manual_seed(0)
    path = Exploding(low=0.01, high=40.0)
    x = path.levels(60)[0].sigma * torch.randn(20_000, dtype=torch.float64)
    found = last(solve(denoise, x, path.levels(60), lambda: torch.randn_like(x)))
    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert found.std().item() == pytest.approx(SPREAD, rel=0.08)


def test_eta_1_is_the_ancestral_solver():
    path, x = Discrete(betas("linear", 1000)), torch.randn(4, dtype=torch.float64)
    noises = torch.randn(8, 4, dtype=torch.float64)
    found = []
    for solve in (
        lambda noise: solvers.ddim(denoise, x, path.levels(8), 1.0, noise),
        lambda noise: solvers.ancestral(lambda x, l: (denoise(x, l), 0.0), x, path.levels(8), noise),
    ):
        rest = iter(noises)
        found.append(last(solve(lambda rest=rest: next(rest))))
    assert_close(found[0], found[1])


# ---- what all families share


def predict(x: Tensor, level: Level) -> Guess:
    return Guess(denoise(x, level))


def sampled(condition: Condition, weak=None, path=None, **knobs) -> Tensor:
    path = path or Straight()
    knob = Knobs(**{"steps": 20, "guidance": 1.0, **knobs})
    shape = (1, 6, 6)
    draws = Draws(range(condition.size))
    *_, canvas = draw(predict, path, path.levels(knob.steps), knob, draws, shape, condition, weak=weak)
    return canvas.picture()


def test_an_image_to_start_from_is_kept_the_more_the_less_the_strength():
    image = torch.linspace(-0.8, 0.8, 36).reshape(1, 1, 6, 6).expand(4, -1, -1, -1)
    near, far = ((sampled(Condition(4, image=image), strength=s) - image).abs().mean() for s in (0.1, 0.9))
    assert near < 0.15 < 0.2 < far


@pytest.mark.parametrize(
    "path", [Straight(), Exploding(), Discrete(betas("linear", 1000))], ids=lambda p: type(p).__name__
)
def test_a_mask_keeps_what_it_does_not_mark(path):
    image = torch.linspace(-0.8, 0.8, 36).reshape(1, 1, 6, 6).expand(3, -1, -1, -1)
    mask = torch.zeros(3, 1, 6, 6)
    mask[..., :3] = 1
    drawn = sampled(Condition(3, image=image, mask=mask), path=path)
    assert torch.equal(drawn[..., 3:], image[..., 3:])
    new = drawn[..., :3]
    assert (new - image[..., :3]).abs().mean() > 0.2 and new.std() > 0.2


def test_repainting_fits_the_new_to_the_old():
    """Two pixels that are always alike: the unknown one must follow the known one, which a single pass misses."""

    def alike(x: Tensor, level: Level) -> Tensor:
        both = x.mean(-1, keepdim=True).expand_as(x)
        return level.alpha * both / (level.alpha**2 + level.sigma**2 / 2)

    torch.manual_seed(0)
    known = torch.randn(4000, 1).expand(-1, 2).clone()
    mask = torch.tensor([[1.0, 0.0]]).expand(4000, -1)
    path = Discrete(betas("linear", 1000))
    misses = []
    for jumps in (1, 6):
        x = torch.randn(4000, 2)
        x = last(solvers.repaint(alike, x, path.levels(25), lambda: torch.randn(4000, 2), known, mask, jumps))
        assert torch.equal(x[:, 1], known[:, 1])
        misses.append((x[:, 0] - known[:, 0]).abs().mean().item())
    assert misses[1] < 0.7 * misses[0] and misses[1] < 0.2


def test_guidance_leads_away_from_the_weaker_guess_within_its_interval():
    def weak(x: Tensor, level: Level) -> Guess:
        return Guess(denoise(x, level) - 0.2)

    plain, led = sampled(Condition(8)), sampled(Condition(8), weak=weak, guidance=3.0)
    assert (led - plain).mean() > 0.2
    calls = []
    sampled(
        Condition(1),
        weak=lambda x, l: calls.append(l.share) or weak(x, l),
        guidance=3.0,
        guide_from=0.25,
        guide_to=0.5,
    )
    assert calls and all(0.25 <= share <= 0.5 for share in calls) and len(calls) < 10


def test_between_two_seeds_lie_normal_numbers_from_the_one_to_the_other():
    ends = Draws([3, 8]).normal(5000)
    way = Draws([(3, 8, share) for share in (0.0, 0.5, 1.0)]).normal(5000)
    assert_close(way[0], ends[0])
    assert_close(way[2], ends[1], atol=1e-6, rtol=0)
    assert way[1].std().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(Draws([(3, 8, 0.5)]).integers(9, 5), Draws([3]).integers(9, 5))


def test_clean_is_where_paths_end():
    assert (CLEAN.ratio, CLEAN.log_snr, CLEAN.share) == (0, math.inf, 1)
    assert Straight().levels(2)[0].log_snr == -math.inf
