"""Solvers of dx/dt = v(x, t): free functions that yield (step, x) after each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def times(steps: int, shift: float = 1.0) -> list[float]:
    """steps + 1 times from 0 to 1; ``shift`` above 1 spends more of them near the noise (Esser 2024, eq. 23)."""
    noise = [1 - i / steps for i in range(steps + 1)]
    return [1 - shift * s / (1 + (shift - 1) * s) for s in noise]


def euler(velocity: Velocity, x: Tensor, t: Sequence[float]) -> Iterator[Tensor]:
    """First order: one call a step."""
    for now, then in pairwise(t):
        x = x + (then - now) * velocity(x, now)
        yield x


def heun(velocity: Velocity, x: Tensor, t: Sequence[float]) -> Iterator[Tensor]:
    """Second order: two calls a step, but the last step is Euler's (Karras 2022, algorithm 1)."""
    for now, then in pairwise(t):
        slope = velocity(x, now)
        guess = x + (then - now) * slope
        if then < t[-1]:
            guess = x + (then - now) * (slope + velocity(guess, then)) / 2
        x = guess
        yield x
