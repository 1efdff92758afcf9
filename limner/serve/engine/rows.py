"""Rows of many flights as calls of a network, each of a number of rows that is known to give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.core import ConditionEmbedding, Denoised
from limner.diffusion.sampling import Call


@dataclass(frozen=True)
class Rows:
    """The numbers of rows that a call may have, ascending. Fewer are padded to the next of them."""

    counts: tuple[int, ...]

    @property
    def most(self) -> int:
        return self.counts[-1]

    def padded(self, rows: int) -> int:
        """The number of rows of a call for ``rows`` of them, which are at most ``most``."""
        return next(count for count in self.counts if count >= rows)

    def limited(self, cap: int) -> Rows | None:
        """Those of at most ``cap`` rows; None: none."""
        counts = tuple(count for count in self.counts if count <= cap)
        return Rows(counts) if counts else None


class CallFailed(Exception):
    """A network call of ``count`` rows raised its cause."""

    served: Any = None  # the model, where the caller knows

    def __init__(self, count: int, cause: BaseException):
        super().__init__(str(cause))
        self.count, self.cause = count, cause


def together(calls: Sequence[Call]) -> list[Denoised]:
    """The guess for each of the calls, of one row each and of one model, by one call of its network.

    Guesses are contiguous, whatever order the network's memory has.
    """
    x = torch.cat([call.x for call in calls])  # [R, ...]
    ones = [1] * (x.ndim - 1)

    def column(values: list[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=x.device)  # [R]

    time = column([call.level.time for call in calls], torch.float32)
    alpha = column([call.level.alpha for call in calls], x.dtype).view(-1, *ones)
    sigma = column([call.level.sigma for call in calls], x.dtype).view(-1, *ones)
    rows = ConditionEmbedding.cat([call.rows for call in calls])
    data, variance = calls[0].model.denoise(x, time, alpha, sigma, rows)
    guesses = data.contiguous().split(1)
    variances = [None] * len(calls) if variance is None else variance.contiguous().split(1)
    return [Denoised(*guess) for guess in zip(guesses, variances, strict=True)]


def kind_of(call: Call) -> tuple[object, ...]:
    """What calls have in common that can be one: the shapes of a row."""
    rows = call.rows
    fields = (rows.embedding, rows.tokens, rows.mask, rows.label)
    return (call.x.shape[1:], call.x.dtype, *(None if x is None else x.shape[1:] for x in fields))


RowsOf = Callable[[Call], Rows]  # the numbers of rows that a call may have beside others of its kind


def batches(calls: Sequence[Call], rows_of: RowsOf) -> Iterator[tuple[list[int], Rows]]:
    """The indices of calls in groups of one kind, of as many as a call may have, in order."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, call in enumerate(calls):
        groups.setdefault(kind_of(call), []).append(i)
    for group in groups.values():
        rows = rows_of(calls[group[0]])
        yield from ((group[at : at + rows.most], rows) for at in range(0, len(group), rows.most))


def evaluate(calls: Sequence[Call], rows_of: RowsOf) -> list[Denoised]:
    """The guess for each of the calls of one model. Raises CallFailed."""
    guesses: dict[int, Denoised] = {}
    for group, rows in batches(calls, rows_of):
        count = rows.padded(len(group))
        chosen = [calls[i] for i in group]
        try:
            found = together([*chosen, *[chosen[0]] * (count - len(group))])
        except Exception as error:
            raise CallFailed(count, error) from error
        guesses.update(zip(group, found, strict=False))
    return [guesses[i] for i in range(len(calls))]


def again(calls: Sequence[Call], rows_of: RowsOf, others: Sequence[Call]) -> list[Denoised]:
    """As ``evaluate``, in other company: other neighbours, other places and where there is one another number."""
    guesses: dict[int, Denoised] = {}
    for group, rows in batches(calls, rows_of):
        for part in (group[: len(group) // 2], group[len(group) // 2 :]):
            if not part:
                continue
            least = rows.padded(len(part))
            count = next((count for count in rows.counts if count > least), least)
            like = [other for other in others if kind_of(other) == kind_of(calls[part[0]])]
            like = like or [calls[i] for i in group]
            strangers = [like[i % len(like)] for i in range(count - len(part))]
            found = together([*strangers, *(calls[i] for i in reversed(part))])
            guesses.update(zip(reversed(part), found[len(strangers) :], strict=True))
    return [guesses[i] for i in range(len(calls))]


def same_bits(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are equal to the bit; a NaN equals the same NaN."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def same_guesses(one: Sequence[Denoised], other: Sequence[Denoised]) -> bool:
    """Whether all guesses are equal to the bit."""
    return all(
        same_bits(a.data, b.data) and same_bits(a.variance, b.variance)
        for a, b in zip(one, other, strict=True)
    )


def pad_tokens(rows: ConditionEmbedding, length: int) -> ConditionEmbedding:
    """With the tokens of ``length``, or of the next multiple of it where there are more."""
    if rows.tokens is None or rows.mask is None:
        return rows
    more = -rows.tokens.shape[1] % length
    return replace(rows, tokens=F.pad(rows.tokens, (0, 0, 0, more)), mask=F.pad(rows.mask, (0, more)))
