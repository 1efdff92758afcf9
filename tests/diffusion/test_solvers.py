"""Solvers where the answer is known: goldens, and data that is one Gaussian, whose denoiser is exact."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from limner.core import Condition, Denoised, Draws
from limner.diffusion import solvers
from limner.diffusion.paths import CLEAN, Discrete, Exploding, NoiseLevel, Path, Straight, betas, karras
from limner.diffusion.sampling import Plan, SamplingConfig, draw
from limner.diffusion.solvers import Problem
from tests.diffusion.gaussian import MEAN, SPREAD, Gaussian, denoise
from tests.helpers import golden


def exact(x: Tensor, now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """Where the ODE carries x: it keeps each point's place within the Gaussian."""

    def spread(level: NoiseLevel) -> float:
        return math.hypot(level.alpha * SPREAD, level.sigma)

    return then.alpha * MEAN + spread(then) / spread(now) * (x - now.alpha * MEAN)


def result(solver: solvers.Solver, guess=denoise) -> Tensor:
    *_, step = solvers.drive(solver, lambda x, level: Denoised(guess(x, level)))
    return step.x


# ---- goldens


def test_karras_levels():
    _, expected = golden("edm_sigmas")
    for n in (5, 18, 40):
        assert karras(n, 0.002, 80) == pytest.approx(expected[f"n{n}"].tolist(), rel=1e-12)


def test_heun_with_karras_levels():
    given, expected = golden("edm_heun_gaussian")
    for steps in (5, 18):
        problem = Problem(80 * given["latents"], Exploding().levels(steps), Exploding())
        found = result(solvers.heun(problem))
        assert_close(found, expected[f"steps{steps}"], rtol=1e-9, atol=1e-9)


def test_dpm_solver_on_the_exploding_path():
    given, expected = golden("k_dpmpp_2m_gaussian")
    levels = [NoiseLevel(1.0, sigma, sigma) for sigma in given["sigmas"].tolist()]
    found = result(solvers.dpm_2m(Problem(80 * given["latents"], levels, Exploding())))
    assert_close(found, expected["x"], rtol=1e-9, atol=1e-9)


PRESERVING = Discrete(
    betas("linear", 1000)
)  # says that the ODE is straightest in x / alpha; its levels are not used


def vp(t: float) -> NoiseLevel:
    """The continuous linear schedule from beta 0.1 to 20."""
    log_alpha = -(t**2) / 4 * 19.9 - t / 2 * 0.1
    return NoiseLevel(math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha)), t)


def vp_at(log_snr: float) -> NoiseLevel:
    square = 0.1**2 + 2 * 19.9 * math.log1p(math.exp(-2 * log_snr))
    return vp((math.sqrt(square) - 0.1) / 19.9)


def in_snr(steps: int) -> list[NoiseLevel]:
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
    problem = Problem(given["x_T"], levels, PRESERVING)
    assert_close(result(solve(problem)), expected[name], rtol=1e-9, atol=1e-9)


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


def error(solve, levels: list[NoiseLevel], path: Path = PRESERVING) -> float:
    x = torch.tensor([-1.2, 0.4, 2.0], dtype=torch.float64)
    found = result(solve(Problem(x, levels, path)))
    return float((found - exact(x, levels[0], levels[-1])).abs().max())


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
    assert error(solve, path.levels(100), path) < 0.03


# ---- one call, order and noise


def test_euler_is_ddim_without_noise_on_every_path():
    x = torch.randn(5, dtype=torch.float64)
    for path in (Straight(), Exploding(), Discrete(betas("cosine", 50))):
        problem = Problem(x, path.levels(6), path)
        assert_close(result(solvers.euler(problem)), result(solvers.ddim(problem)))


@pytest.mark.parametrize(
    ("name", "calls"), [("euler", 8), ("ddim", 8), ("heun", 15), ("dpm2m", 8), ("dpm3m", 8), ("unipc", 8)]
)
def test_calls_of_the_network(name, calls):
    seen = []
    problem = Problem(torch.zeros(3), Straight().levels(8), Straight())
    solver = {n: s for n, s, _ in ORDERS}[name](problem)
    steps = list(solvers.drive(solver, lambda x, l: seen.append(l) or Denoised(denoise(x, l))))
    assert [step.done for step in steps] == list(range(1, 9)) and len(seen) == calls
    assert all(level.sigma for level in seen), "no network is called at the data"


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
        solvers.ancestral,
        partial(solvers.ancestral, variance=1.0),
        partial(solvers.ddim, eta=1.0),
        partial(solvers.heun, churn=30.0, churn_noise=1.0),
        solvers.dpm_2m_sde,
    ],
    ids=["ancestral", "ancestral, large", "ddim, eta 1", "heun, churn", "dpm2m_sde"],
)
def test_solvers_that_draw_noise_keep_the_distribution(solve):
    torch.manual_seed(0)
    path = Exploding(sigma_min=0.01, sigma_max=40.0)
    x = path.levels(60)[0].sigma * torch.randn(20_000, dtype=torch.float64)
    found = result(solve(Problem(x, path.levels(60), path, lambda: torch.randn_like(x))))
    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert found.std().item() == pytest.approx(SPREAD, rel=0.08)


@pytest.mark.parametrize(("solve", "order"), [(solvers.ancestral, 1), (solvers.dpm_2m_sde, 2)])
def test_the_order_of_solvers_that_draw_noise(solve, order):
    """By the variance of where they lead from x, beside that of the less noisy level given x; all is Gaussian.

    Guesses are linear in x, so each step's noise adds its part: row k of the batch draws noise in step k alone.
    """

    def error(steps: int) -> float:
        levels, start = (
            [vp_at(2 * i / steps - 1) for i in range(steps + 1)],
            torch.zeros(steps, dtype=torch.float64),
        )
        noises = iter(torch.eye(steps, dtype=torch.float64))
        found = result(solve(Problem(start, levels, PRESERVING, lambda: next(noises))))
        silent = result(solve(Problem(start, levels, PRESERVING, lambda: torch.zeros_like(start))))
        noisy, end = levels[0], levels[-1]
        before, after = ((at.alpha * SPREAD) ** 2 + at.sigma**2 for at in (noisy, end))
        wanted = after - (noisy.alpha / end.alpha * after) ** 2 / before
        return abs(float((found - silent).square().sum()) - wanted)

    assert math.log2(error(160) / error(320)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solve", [solvers.euler, solvers.heun, solvers.dpm_2m, solvers.unipc])
def test_a_network_that_falls_short_is_made_up_for_by_the_scale_of_velocities(solve):
    """A constant velocity leads from x to x + velocity; one of four fifths of its length does so at scale 1.25."""
    x, velocity = torch.randn(2, 3, 4, 4, generator=torch.manual_seed(0)).double(), 0.5
    levels = Straight().levels(6, 1.5)

    def short(x: Tensor, level: NoiseLevel) -> Tensor:
        return x + level.sigma * 0.8 * velocity

    problem = Problem(x, levels, Straight())
    assert_close(result(solvers.scale_velocity(solve(problem), 1.25), short), x + velocity)
    assert_close(result(solve(problem), short), x + 0.8 * velocity)


def test_a_learned_variance_is_used_for_each_pixel():
    path, x = Exploding(), torch.full((2,), 5.0, dtype=torch.float64)
    problem = Problem(x, [path.at(5.0), path.at(2.0)], path, lambda: torch.ones_like(x))

    def drawn(variance: float, learned: Tensor | None) -> Tensor:
        solver = solvers.ancestral(problem, variance)
        *_, step = solvers.drive(solver, lambda x, level: Denoised(denoise(x, level), learned))
        return step.x

    both = drawn(0.5, torch.tensor([0.0, 1.0]))
    assert_close(both, torch.stack([drawn(0.0, None)[0], drawn(1.0, None)[1]]))


def test_a_solver_that_draws_noise_needs_a_source():
    with pytest.raises(ValueError, match="source"):
        result(solvers.ancestral(Problem(torch.zeros(2), Straight().levels(4), Straight())))


def test_eta_1_is_the_ancestral_solver():
    path, x = Discrete(betas("linear", 1000)), torch.randn(4, dtype=torch.float64)
    noises = torch.randn(8, 4, dtype=torch.float64)
    found = []
    for solve in (partial(solvers.ddim, eta=1.0), solvers.ancestral):
        rest = iter(noises)
        found.append(result(solve(Problem(x, path.levels(8), path, lambda rest=rest: next(rest)))))
    assert_close(found[0], found[1])


# ---- what all families share


def sampled(condition: Condition, path=None, gap=0.0, **options) -> tuple[Tensor, Gaussian]:
    model = Gaussian(path or Straight(), gap)
    config = SamplingConfig(**{"steps": 20, "guidance": 1.0, **options})
    *_, canvas = draw(model, condition, config, Draws(range(condition.size)))
    return canvas.picture(), model


def test_an_image_to_start_from_is_kept_the_more_the_less_the_strength():
    image = torch.linspace(-0.8, 0.8, 36).reshape(1, 1, 6, 6).expand(4, -1, -1, -1)
    near, far = ((sampled(Condition(4, image=image), strength=s)[0] - image).abs().mean() for s in (0.1, 0.9))
    assert near < 0.15 < 0.2 < far


@pytest.mark.parametrize(
    "path", [Straight(), Exploding(), Discrete(betas("linear", 1000))], ids=lambda p: type(p).__name__
)
def test_a_mask_keeps_what_it_does_not_mark(path):
    image = torch.linspace(-0.8, 0.8, 36).reshape(1, 1, 6, 6).expand(3, -1, -1, -1)
    mask = torch.zeros(3, 1, 6, 6)
    mask[..., :3] = 1
    drawn, _ = sampled(Condition(3, image=image, mask=mask), path=path)
    assert torch.equal(drawn[..., 3:], image[..., 3:])
    new = drawn[..., :3]
    assert (new - image[..., :3]).abs().mean() > 0.2 and new.std() > 0.2


def test_repainting_fits_the_new_to_the_old():
    """Two pixels that are always alike: the unknown one must follow the known one, which a single pass misses."""

    def alike(x: Tensor, level: NoiseLevel) -> Tensor:
        both = x.mean(-1, keepdim=True).expand_as(x)
        return level.alpha * both / (level.alpha**2 + level.sigma**2 / 2)

    torch.manual_seed(0)
    known = torch.randn(4000, 1).expand(-1, 2).clone()
    mask = torch.tensor([[1.0, 0.0]]).expand(4000, -1)
    path = Discrete(betas("linear", 1000))
    misses = []
    for repeats in (1, 6):
        problem = Problem(torch.randn(4000, 2), path.levels(25), path, lambda: torch.randn(4000, 2))
        x = result(solvers.repaint(problem, known, mask, repeats), alike)
        assert torch.equal(x[:, 1], known[:, 1])
        misses.append((x[:, 0] - known[:, 0]).abs().mean().item())
    assert misses[1] < 0.7 * misses[0] and misses[1] < 0.2


def test_guidance_leads_away_from_no_condition_in_one_call_within_its_interval():
    labels = Condition(2, label=torch.tensor([0, 0]))
    plain, _ = sampled(labels, gap=0.2)
    led, _ = sampled(labels, gap=0.2, guidance=3.0)
    assert (led - plain).mean() > 0.2
    _, model = sampled(labels, gap=0.2, guidance=3.0, guidance_low=0.25, guidance_high=0.5)
    assert len(model.calls) == 20, "one call a step, guided or not"
    guided = [signal[0] for rows, signal in model.calls if rows == [0, 0, -1, -1]]
    assert guided and len(guided) < 10 and all(0.25 <= signal <= 0.5 for signal in guided)
    assert all(rows == [0, 0] for rows, signal in model.calls if signal[0] not in guided)


def test_guidance_of_one_and_no_condition_take_one_row_an_image():
    for condition, guidance in ((Condition(1, label=torch.tensor([0])), 1.0), (Condition(1), 3.0)):
        _, model = sampled(condition, guidance=guidance)
        assert all(len(rows) == 1 for rows, _ in model.calls)


def test_some_channels_may_go_unguided():
    """As the code of Peebles 2023 draws latents of four channels."""
    model = Gaussian(Straight(), gap=0.2, guided_channels=3)
    model.plan = lambda config: Plan(model.path, model.path.levels(2), (4, 2, 2), guided_channels=3)
    config = SamplingConfig(guidance=3.0, solver="euler")
    label, none = Condition(1, label=torch.tensor([0])), Condition(1)
    *_, led = draw(model, label, config, Draws([0]))
    model.gap = 0.0
    *_, plain = draw(model, none, config, Draws([0]))
    assert torch.equal(led.picture()[:, 3], plain.picture()[:, 3])
    assert (led.picture() - plain.picture())[:, :3].min() > 0.1


def test_autoguidance_is_another_networks_call():
    labels = Condition(2, label=torch.tensor([0, 0]))
    other = Gaussian(Straight(), gap=0.2)
    _, model = sampled(labels, guidance=3.0, autoguidance=other)
    assert len(model.calls) == len(other.calls) == 20
    assert all(rows == [0, 0] for rows, _ in model.calls + other.calls)


def test_a_preview_is_the_guess_and_the_last_canvas_the_result():
    config = SamplingConfig(steps=6, solver="euler")
    canvases = list(draw(Gaussian(Straight()), Condition(2), config, Draws([0, 1])))
    assert [canvas.done for canvas in canvases] == [1, 2, 3, 4, 5, 6]
    first, last = canvases[0], canvases[-1]
    assert first.picture().std() > 1.2 * first.preview().std(), "less noise"
    assert torch.equal(last.preview(), last.picture())
    assert not torch.equal(first.preview(), last.preview())


def test_between_two_seeds_lie_normal_numbers_from_the_one_to_the_other():
    ends = Draws([3, 8]).normal(5000)
    way = Draws([(3, 8, share) for share in (0.0, 0.5, 1.0)]).normal(5000)
    assert_close(way[0], ends[0])
    assert_close(way[2], ends[1], atol=1e-6, rtol=0)
    assert way[1].std().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(Draws([(3, 8, 0.5)]).integers(9, 5), Draws([3]).integers(9, 5))


def test_clean_is_where_paths_end():
    assert (CLEAN.ratio, CLEAN.log_snr, CLEAN.signal) == (0, math.inf, 1)
    assert Straight().levels(2)[0].log_snr == -math.inf
