"""From noise to data: each solver is a free function over a denoiser, a start and a row of levels.

A denoiser takes x and its level and guesses the clean data. A solver yields x after each step, so that the last
is the result. Which path the levels lie on does not matter (see `paths`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from limner.diffusion.paths import Level

Denoise = Callable[[Tensor, Level], Tensor]
Noise = Callable[[], Tensor]  # standard normal, shaped like x


def noise_in(x: Tensor, data: Tensor, level: Level) -> Tensor:
    """The noise of x = alpha data + sigma noise."""
    return (x - level.alpha * data) / level.sigma


# ---- steps that draw noise


def posterior(now: Level, then: Level) -> tuple[float, float, float]:
    """(a, b, variance) of N(a x + b data, variance), where x came from at the less noisy ``then``.

    Ho 2020, eq. 7, for any path: what noise the step added has variance s^2 = sigma^2 - (alpha/alpha')^2 sigma'^2.
    """
    shrink = now.alpha / then.alpha
    added = added_variance(now, then)
    old, new = then.sigma**2, now.sigma**2
    return shrink * old / new, then.alpha * added / new, old * added / new


def added_variance(now: Level, then: Level) -> float:
    """beta for neighbouring steps of a variance preserving path: of the noise between two levels."""
    return max(now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2, 0.0)


def ancestral(
    denoise: Callable[[Tensor, Level], tuple[Tensor, Tensor | float]],
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
) -> Iterator[Tensor]:
    """Ho 2020, algorithm 2. With the data, ``denoise`` says which variance to draw with.

    It lies between the posterior's (0), and the noise's that the step added (1), in the logarithm (Nichol 2021,
    eq. 15); a number, or one for each pixel.
    """
    for now, then in pairwise(levels):
        data, share = denoise(x, now)
        a, b, small = posterior(now, then)
        x = a * x + b * data
        if then.sigma:
            low, high = math.log(small), math.log(added_variance(now, then))
            log = low + share * (high - low)
            x = x + (torch.exp(0.5 * log) if isinstance(log, Tensor) else math.exp(0.5 * log)) * noise()
        yield x


def ddim(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], eta: float = 0.0, noise: Noise | None = None
) -> Iterator[Tensor]:
    """Song 2021, eq. 12 and 16; ``eta`` 0 draws no noise, 1 as much as the ancestral solver's posterior.

    Without noise it is the first order of every path: Euler's step of the straight one, and DPM-Solver++'s first.
    """
    for now, then in pairwise(levels):
        data = denoise(x, now)
        spread = eta * math.sqrt(posterior(now, then)[2])
        x = then.alpha * data + math.sqrt(then.sigma**2 - spread**2) * noise_in(x, data, now)
        if spread and noise is not None:
            x = x + spread * noise()
        yield x


def repaint(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    known: Tensor,
    mask: Tensor,
    jumps: int = 1,
) -> Iterator[Tensor]:
    """Lugmayr 2022, algorithm 1: what ``mask`` leaves at 0 is ``known``, at each level with its share of noise.

    Each step is taken ``jumps`` times, with noise added back between, so that both parts come to agree.
    """
    for now, then in pairwise(levels):
        for jump in range(jumps):
            data = denoise(x, now)
            a, b, small = posterior(now, then)
            drawn = a * x + b * data + (math.sqrt(small) * noise() if small else 0.0)
            given = then.alpha * known + (then.sigma * noise() if then.sigma else 0.0)
            y = torch.where(mask > 0, drawn, given)
            if jump + 1 < jumps:
                x = now.alpha / then.alpha * y + math.sqrt(added_variance(now, then)) * noise()
        x = y
        yield x


# ---- the ordinary differential equation


def slope(x: Tensor, data: Tensor, level: Level) -> Tensor:
    """dy/dr of y = x / (alpha + sigma), r = sigma / (alpha + sigma) where the path is straight, else of

    y = x / alpha, r = sigma / alpha, in which Karras 2022, eq. 1 and 4, is a straight line near the noise.
    """
    noise = noise_in(x, data, level)
    return noise - data if level.straight else noise


def _scale(level: Level) -> float:
    return level.alpha + level.sigma if level.straight else level.alpha


def _move(x: Tensor, change: Tensor, now: Level, then: Level) -> Tensor:
    """From one level to another along dy/dr = ``change``."""
    here, there = _scale(now), _scale(then)
    return there * (x / here + (then.sigma / there - now.sigma / here) * change)


def euler(denoise: Denoise, x: Tensor, levels: Sequence[Level]) -> Iterator[Tensor]:
    """First order: one call a step."""
    for now, then in pairwise(levels):
        x = _move(x, slope(x, denoise(x, now), now), now, then)
        yield x


def heun(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    churn: float = 0.0,
    noise: Noise | None = None,
    at: Callable[[float], Level] | None = None,
    churn_low: float = 0.05,
    churn_high: float = 50.0,
    churn_noise: float = 1.003,
) -> Iterator[Tensor]:
    """Karras 2022, algorithm 2: second order, two calls a step but the last, which is Euler's.

    ``churn`` adds noise before each step whose sigma / alpha lies between the two bounds; it needs ``noise``, and
    ``at``, the path's level of a ratio. Without churn it is algorithm 1.
    """
    steps = len(levels) - 1
    for now, then in pairwise(levels):
        if churn and noise is not None and at is not None and churn_low <= now.ratio <= churn_high:
            up = at(now.ratio * (1 + min(churn / steps, math.sqrt(2) - 1)))
            extra = churn_noise * math.sqrt(up.ratio**2 - now.ratio**2)
            x, now = up.alpha * (x / now.alpha + extra * noise()), up
        change = slope(x, denoise(x, now), now)
        guess = _move(x, change, now, then)
        if then.sigma:
            change = (change + slope(guess, denoise(guess, then), then)) / 2
            guess = _move(x, change, now, then)
        x = guess
        yield x


# ---- exponential integrators, in log alpha / sigma


def _first(x: Tensor, data: Tensor, now: Level, then: Level) -> tuple[Tensor, float]:
    """DPM-Solver++'s first order (Lu 2022b, eq. 9 with k = 1), and alpha (1 - exp(-h)), which ends may make simple."""
    left = now.alpha * then.sigma / (then.alpha * now.sigma)  # exp(-h)
    gain = then.alpha * (1 - left)
    return then.sigma / now.sigma * x + gain * data, gain


def _even(*steps: float) -> bool:
    """Whether all steps in log alpha / sigma are finite, as a higher order needs."""
    return all(math.isfinite(h) for h in steps)


def dpm_2m(denoise: Denoise, x: Tensor, levels: Sequence[Level]) -> Iterator[Tensor]:
    """DPM-Solver++(2M), one call a step (Lu 2022b, algorithm 2). Ends at noise or data alone are of first order."""
    before, last = math.inf, x
    for now, then in pairwise(levels):
        data = denoise(x, now)
        h = then.log_snr - now.log_snr
        x, gain = _first(x, data, now, then)
        if _even(before, h):
            x = x + gain * h / (2 * before) * (data - last)
        before, last = h, data
        yield x


def dpm_3m(denoise: Denoise, x: Tensor, levels: Sequence[Level]) -> Iterator[Tensor]:
    """DPM-Solver++(3M), one call a step: the data's first two derivatives from three guesses (Lu 2022b, app. B)."""
    steps: list[float] = []
    guesses: list[Tensor] = []
    for now, then in pairwise(levels):
        data = denoise(x, now)
        h = then.log_snr - now.log_snr
        x, gain = _first(x, data, now, then)
        if steps and _even(h, steps[-1]):
            r0 = steps[-1] / h
            d0 = (data - guesses[-1]) / r0
            if len(steps) > 1 and _even(steps[-2]):
                r1 = steps[-2] / h
                d1 = (guesses[-1] - guesses[-2]) / r1
                first, second = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
                phi2 = math.expm1(-h) / h + 1
                x = x + then.alpha * (phi2 * first - (phi2 / h - 0.5) * second)
            else:
                x = x + 0.5 * gain * d0
        steps.append(h)
        guesses.append(data)
        yield x


def unipc(denoise: Denoise, x: Tensor, levels: Sequence[Level], order: int = 3) -> Iterator[Tensor]:
    """UniPC, data prediction with B(h) = exp(h) - 1 (Zhao 2023, algorithms 5 and 6): one call a step.

    Each step predicts, and the guess made at its end, which the next step needs anyway, corrects it first.
    """
    last = len(levels) - 2
    guesses: list[tuple[float, Tensor]] = []  # (log alpha / sigma, data)
    data = denoise(x, levels[0])
    for i, (now, then) in enumerate(pairwise(levels)):
        h = then.log_snr - now.log_snr
        base, _ = _first(x, data, now, then)
        history = (
            [(at, guess) for at, guess in guesses if math.isfinite(at)][-(order - 1) :] if order > 1 else []
        )
        places = [(at - now.log_snr) / h for at, _ in history] if _even(h) else []
        slopes = [(guess - data) / r for r, (_, guess) in zip(places, history, strict=False)]
        x = base
        if places:
            x = base + _combine(h, places, slopes, then.alpha)
        if i < last:
            guesses.append((now.log_snr, data))
            there = denoise(x, then)
            if _even(h):
                x = base + _combine(h, [*places, 1.0], [*slopes, there - data], then.alpha)
            data = there
        yield x


def _combine(h: float, places: Sequence[float], slopes: Sequence[Tensor], alpha: float) -> Tensor:
    """Zhao 2023, eq. 9: the sum of the slopes with the weights that cancel the first error terms."""
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
