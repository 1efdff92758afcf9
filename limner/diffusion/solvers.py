"""From noise to data: each solver is a generator that asks for the denoised guess and returns the result.

It yields a `Query`, is sent a `Denoised`, and returns x at the last level. It never calls a network, so whoever
drives it may answer the queries of several solvers by one network call. `drive` answers one solver's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from limner.core import Denoised
from limner.diffusion.paths import NoiseLevel, Path


class Query(NamedTuple):
    """The solver needs the clean data of ``x`` [B, ...] at ``level``, after ``done`` whole steps."""

    x: Tensor
    level: NoiseLevel
    done: int


Solver = Generator[Query, Denoised, Tensor]


@dataclass(frozen=True)
class Problem:
    """What every solver starts from."""

    x: Tensor  # [B, ...], at the first level
    levels: Sequence[NoiseLevel]  # from noise to data, one more than steps
    path: Path
    noise: Callable[[], Tensor] | None = None  # -> standard normal, shaped like x

    def steps(self) -> Iterator[tuple[int, NoiseLevel, NoiseLevel]]:
        """Each step's number, its level and the next."""
        return ((done, now, then) for done, (now, then) in enumerate(pairwise(self.levels)))

    def draw_noise(self) -> Tensor:
        if self.noise is None:
            raise ValueError("this solver draws noise: give its problem a source")
        return self.noise()


class Step(NamedTuple):
    """A solver after ``done`` whole steps: ``x`` [B, ...] and the last guess of the clean data.

    Before the last step, ``x`` is that of the next query: with churn's noise, or before UniPC's correction.
    """

    done: int
    x: Tensor
    denoised: Tensor


def drive(solver: Solver, denoise: Callable[[Tensor, NoiseLevel], Denoised]) -> Iterator[Step]:
    """One solver alone: each query is answered at once. The last step's x is the result."""
    query = next(solver)
    while True:
        denoised = denoise(query.x, query.level)
        try:
            following = solver.send(denoised)
        except StopIteration as end:
            yield Step(query.done + 1, end.value, denoised.data)
            return
        if following.done > query.done:
            yield Step(following.done, following.x, denoised.data)
        query = following


def scale_velocity(solver: Solver, scale: float) -> Solver:
    """The solver on the straight path, with every velocity (data - x) / sigma multiplied by ``scale``.

    Against exposure bias, for which Ning 2024 scales the noise: after short trainings, samples fall short of the data.
    """
    query = next(solver)
    while True:
        data, variance = yield query
        try:
            query = solver.send(Denoised(query.x + scale * (data - query.x), variance))
        except StopIteration as end:
            result: Tensor = end.value
            return result


def noise_in(x: Tensor, data: Tensor, level: NoiseLevel) -> Tensor:
    """The noise of x = alpha data + sigma noise."""
    return (x - level.alpha * data) / level.sigma


# ---- steps that draw noise


def posterior(now: NoiseLevel, then: NoiseLevel) -> tuple[float, float, float]:
    """(a, b, variance) of N(a x + b data, variance), the distribution of x at the less noisy ``then``.

    Ho 2020, eq. 7, for any path, with beta replaced by `added_variance`.
    """
    scale = now.alpha / then.alpha
    added = added_variance(now, then)
    old, new = then.sigma**2, now.sigma**2
    return scale * old / new, then.alpha * added / new, old * added / new


def added_variance(now: NoiseLevel, then: NoiseLevel) -> float:
    """sigma^2 - (alpha/alpha')^2 sigma'^2, of the noise between two levels; beta for neighbouring steps of DDPM."""
    return max(now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2, 0.0)


def ancestral(problem: Problem, variance: float = 0.0) -> Solver:
    """Ho 2020, algorithm 2.

    ``variance`` in [0, 1] interpolates the logarithm of the step's variance, from the posterior's at 0 to that of
    the added noise at 1 (Nichol 2021, eq. 15); a network that learned it says so for each pixel.
    """
    x = problem.x
    for done, now, then in problem.steps():
        data, learned = yield Query(x, now, done)
        a, b, small = posterior(now, then)
        x = a * x + b * data
        if then.sigma:
            low, high = math.log(small), math.log(added_variance(now, then))
            log = low + (variance if learned is None else learned) * (high - low)
            std = torch.exp(0.5 * log) if isinstance(log, Tensor) else math.exp(0.5 * log)
            x = x + std * problem.draw_noise()
    return x


def ddim(problem: Problem, eta: float = 0.0) -> Solver:
    """Song 2021, eq. 12 and 16; ``eta`` 0 draws no noise, 1 as much as the ancestral solver's posterior.

    Without noise it is first order on every path: Euler's step on the straight one, and DPM-Solver++'s first order.
    """
    x = problem.x
    for done, now, then in problem.steps():
        data = (yield Query(x, now, done)).data
        std = eta * math.sqrt(posterior(now, then)[2])
        x = then.alpha * data + math.sqrt(then.sigma**2 - std**2) * noise_in(x, data, now)
        if std:
            x = x + std * problem.draw_noise()
    return x


def repaint(problem: Problem, known: Tensor, mask: Tensor, repeats: int = 1) -> Solver:
    """Lugmayr 2022, algorithm 1: where ``mask`` is 0, x is ``known`` with each level's noise.

    Each step is taken ``repeats`` times, with noise added back in between, so that the two parts come to agree.
    """
    x = problem.x
    for done, now, then in problem.steps():
        for repeat in range(repeats):
            data = (yield Query(x, now, done)).data
            a, b, small = posterior(now, then)
            drawn = a * x + b * data + (math.sqrt(small) * problem.draw_noise() if small else 0.0)
            given = then.alpha * known + (then.sigma * problem.draw_noise() if then.sigma else 0.0)
            y = torch.where(mask > 0, drawn, given)
            if repeat + 1 < repeats:
                back = math.sqrt(added_variance(now, then)) * problem.draw_noise()
                x = now.alpha / then.alpha * y + back
        x = y
    return x


# ---- the ordinary differential equation
#
# On the straight path y = x / (alpha + sigma) against r = sigma / (alpha + sigma), elsewhere y = x / alpha against
# r = sigma / alpha, in which Karras 2022, eq. 1 and 4, is a straight line near the noise.


def slope(x: Tensor, data: Tensor, level: NoiseLevel, path: Path) -> Tensor:
    """dy/dr."""
    noise = noise_in(x, data, level)
    return noise - data if path.straight else noise


def _move(x: Tensor, change: Tensor, now: NoiseLevel, then: NoiseLevel, path: Path) -> Tensor:
    """From one level to another along dy/dr = ``change``."""
    here, there = (at.alpha + at.sigma if path.straight else at.alpha for at in (now, then))
    return there * (x / here + (then.sigma / there - now.sigma / here) * change)


def euler(problem: Problem) -> Solver:
    """First order: one query a step."""
    x, path = problem.x, problem.path
    for done, now, then in problem.steps():
        data = (yield Query(x, now, done)).data
        x = _move(x, slope(x, data, now, path), now, then, path)
    return x


def heun(problem: Problem, churn: float = 0.0, churn_noise: float = 1.003) -> Solver:
    """Karras 2022, algorithm 2: second order, two queries a step but the last, which is Euler's.

    ``churn`` adds noise before each step whose sigma / alpha is from 0.05 to 50. Without it, this is algorithm 1.
    """
    x, path, steps = problem.x, problem.path, len(problem.levels) - 1
    for done, now, then in problem.steps():
        if churn and 0.05 <= now.ratio <= 50:
            up = path.at(now.ratio * (1 + min(churn / steps, math.sqrt(2) - 1)))
            extra = churn_noise * math.sqrt(up.ratio**2 - now.ratio**2)
            x, now = up.alpha * (x / now.alpha + extra * problem.draw_noise()), up
        change = slope(x, (yield Query(x, now, done)).data, now, path)
        ahead = _move(x, change, now, then, path)
        if then.sigma:
            change = (change + slope(ahead, (yield Query(ahead, then, done)).data, then, path)) / 2
            ahead = _move(x, change, now, then, path)
        x = ahead
    return x


# ---- exponential integrators, in log alpha / sigma


def _first(x: Tensor, data: Tensor, now: NoiseLevel, then: NoiseLevel) -> tuple[Tensor, float]:
    """A step of DPM-Solver++'s first order (Lu 2022b, eq. 9 with k = 1), and alpha (1 - exp(-h))."""
    left = now.alpha * then.sigma / (then.alpha * now.sigma)  # exp(-h)
    gain = then.alpha * (1 - left)
    return then.sigma / now.sigma * x + gain * data, gain


def _finite(*steps: float) -> bool:
    """Whether all steps in log alpha / sigma are finite, as higher orders need."""
    return all(math.isfinite(h) for h in steps)


def dpm_2m(problem: Problem) -> Solver:
    """DPM-Solver++(2M), one query a step (Lu 2022b, algorithm 2); first order from pure noise and to the data."""
    x = last = problem.x
    before = math.inf
    for done, now, then in problem.steps():
        data = (yield Query(x, now, done)).data
        h = then.log_snr - now.log_snr
        x, gain = _first(x, data, now, then)
        if _finite(before, h):
            x = x + gain * h / (2 * before) * (data - last)
        before, last = h, data
    return x


def dpm_2m_sde(problem: Problem) -> Solver:
    """SDE-DPM-Solver++(2M), one query a step (Lu 2022b, app. B): the ancestral solver with two guesses.

    It draws as much noise, which washes out what earlier guesses had wrong, and needs fewer steps.
    """
    x = last = problem.x
    before = math.inf
    for done, now, then in problem.steps():
        data = (yield Query(x, now, done)).data
        h = then.log_snr - now.log_snr
        a, b, variance = posterior(now, then)
        x = a * x + b * data
        if _finite(before, h):
            x = x + b * h / (2 * before) * (data - last)
        if then.sigma:
            x = x + math.sqrt(variance) * problem.draw_noise()
        before, last = h, data
    return x


def dpm_3m(problem: Problem) -> Solver:
    """DPM-Solver++(3M), one query a step: the data's first two derivatives from three guesses (Lu 2022b, app. B)."""
    x = problem.x
    steps: list[float] = []
    guesses: list[Tensor] = []
    for done, now, then in problem.steps():
        data = (yield Query(x, now, done)).data
        h = then.log_snr - now.log_snr
        x, gain = _first(x, data, now, then)
        if steps and _finite(h, steps[-1]):
            r0 = steps[-1] / h
            d0 = (data - guesses[-1]) / r0
            if len(steps) > 1 and _finite(steps[-2]):
                r1 = steps[-2] / h
                d1 = (guesses[-1] - guesses[-2]) / r1
                first, second = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
                phi2 = math.expm1(-h) / h + 1
                x = x + then.alpha * (phi2 * first - (phi2 / h - 0.5) * second)
            else:
                x = x + 0.5 * gain * d0
        steps.append(h)
        guesses.append(data)
    return x


def unipc(problem: Problem, order: int = 3) -> Solver:
    """UniPC, data prediction with B(h) = exp(h) - 1 (Zhao 2023, algorithms 5 and 6): one query a step.

    Each step predicts. The guess at its end, which the next step needs anyway, then corrects it.
    """
    x, final = problem.x, len(problem.levels) - 2
    guesses: list[tuple[float, Tensor]] = []  # (log alpha / sigma, data)
    data = (yield Query(x, problem.levels[0], 0)).data
    for done, now, then in problem.steps():
        h = then.log_snr - now.log_snr
        base, _ = _first(x, data, now, then)
        finite = [(at, guess) for at, guess in guesses if math.isfinite(at)]
        history = finite[-(order - 1) :] if order > 1 else []
        places = [(at - now.log_snr) / h for at, _ in history] if _finite(h) else []
        slopes = [(guess - data) / r for r, (_, guess) in zip(places, history, strict=False)]
        x = base + _combine(h, places, slopes, then.alpha) if places else base
        if done < final:
            guesses.append((now.log_snr, data))
            there = (yield Query(x, then, done + 1)).data
            if _finite(h):
                x = base + _combine(h, [*places, 1.0], [*slopes, there - data], then.alpha)
            data = there
    return x


def _combine(h: float, places: Sequence[float], slopes: Sequence[Tensor], alpha: float) -> Tensor:
    """Zhao 2023, eq. 9: the sum of the slopes, weighted so that the first error terms cancel."""
    size = len(places)
    phi = math.expm1(-h) / -h - 1  # h phi_2 of -h, then phi_3, ...
    factorial, wanted = 1.0, []
    for k in range(1, size + 1):
        wanted.append(phi * factorial / math.expm1(-h))
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    powers = torch.tensor(places, dtype=torch.float64) ** torch.arange(size, dtype=torch.float64)[:, None]
    if size == 1:
        weights = [0.5]  # as the paper's code, which keeps its order
    else:
        weights = torch.linalg.solve(powers, torch.tensor(wanted, dtype=torch.float64)).tolist()
    total = sum(w * s for w, s in zip(weights, slopes, strict=True))
    return -alpha * math.expm1(-h) * total  # type: ignore[return-value]
