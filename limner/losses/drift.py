"""The drifting field: which way generated samples should move to be distributed as the data are (Deng 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FAR = (
    -1e9
)  # the logit of a pair that must not count; finite, so that a row or column of nothing else stays so


class Drift(NamedTuple):
    features: Tensor  # [..., N, D], the generated samples' features, normalised; differentiable
    field: Tensor  # [..., N, D], where they should move, of unit length a dimension and temperature
    apart: Tensor  # the energy distance of both sets, a scalar: 0 where they are distributed alike


def weights(distance: Tensor, positives: int, temperature: float, bias: Tensor | None = None) -> Tensor:
    """[..., N, P + M] distances to P positives and then M negatives -> signed weights of the same shape.

    The kernel exp(-distance / temperature) is normalised along both axes, the geometric mean of two softmaxes,
    and each side is weighed by the other's sum, so that a row adds up to 0 (Deng 2026, eq. 11 and algorithm 2).
    ``bias`` is added to the logits: the logarithm of a pair's weight, or ``FAR`` for one that must not count.
    """
    logits = -distance / temperature
    if bias is not None:
        logits = logits + bias
    kernel = (logits.softmax(-1) * logits.softmax(-2)).sqrt()
    if bias is not None:
        kernel = kernel * (bias > FAR / 2)
    attract, repel = kernel[..., :positives], kernel[..., positives:]
    attract, repel = attract * repel.sum(-1, keepdim=True), repel * attract.sum(-1, keepdim=True)
    return torch.cat([attract, -repel], dim=-1)


def field(
    x: Tensor, positive: Tensor, negative: Tensor, temperature: float, bias: Tensor | None = None
) -> Tensor:
    """V(x) [..., N, D]: towards ``positive`` [..., P, D], away from ``negative`` [..., M, D].

    Pairs of a sample with itself are kept out by ``bias`` [N, P + M] (see ``pairs``).
    """
    others = torch.cat([positive, negative], dim=-2)
    return weights(torch.cdist(x, others), positive.shape[-2], temperature, bias) @ others


def pairs(same: Tensor, guidance: Tensor | None = None) -> Tensor:
    """The bias of a batch in which sample and image i are of one class: [N, 2N], or [N, 3N] with guidance.

    ``same`` [N, N] says which are of one class. Positives are the images of a sample's class, negatives the other
    samples of it and, with ``guidance`` [N] (alpha >= 1), the images of all other classes, weighted so that
    the equilibrium is alpha times the class's distribution less alpha - 1 times theirs (Deng 2026, A.7).
    """
    n = len(same)
    off = torch.zeros(n, n, device=same.device)
    alone = torch.eye(n, dtype=torch.bool, device=same.device)
    parts = [off.masked_fill(~same, FAR), off.masked_fill(~same | alone, FAR)]
    if guidance is not None:
        others, rivals = (~same).sum(1), same.sum(1) - 1  # how many of each a sample has, [N]
        share = (guidance - 1).clamp(min=0) * rivals / others.clamp(min=1)  # weight of one image
        away = share.clamp(min=1e-30).log()[:, None].expand(n, n)
        parts.append(away.masked_fill(same | (share <= 0)[:, None], FAR))
    return torch.cat(parts, dim=1)


def drift(
    x: Tensor, real: Tensor, bias: Tensor, temperatures: Sequence[float], guided: bool = False
) -> Drift:
    """The samples' features [L, N, D] beside those of as many images, at L places that share their scales.

    Features are scaled to a mean distance of sqrt(D), temperatures are in units of that, and the field of each is
    scaled to a mean square of 1 before they are added up (Deng 2026, A.6). ``bias`` is from ``pairs``, ``guided``
    says that it has a part for guidance.
    """
    x, real = x.float(), real.float()
    with torch.no_grad():
        others = torch.cat([real, x, real] if guided else [real, x], dim=-2)  # [L, M, D]
        distance = torch.cdist(x, others)  # [L, N, M]
        counts = (bias > FAR / 2).float()
        scale = (distance * counts).sum() / (counts.sum() * len(x))  # the mean distance
        scale = scale.clamp(min=1e-6)
        units = x.shape[-1] ** 0.5
        total = torch.zeros_like(x)
        for temperature in temperatures:
            push = weights(distance / scale, real.shape[-2], temperature, bias) @ others * (units / scale)
            total += push / push.square().mean().sqrt().clamp(min=1e-12)
        n = real.shape[-2]
        between, within = bias[:, :n] > FAR / 2, bias[:, n : 2 * n] > FAR / 2
        apart = (
            2 * mean_where(distance[..., :n], between)
            - mean_where(distance[..., n : 2 * n], within)
            - mean_where(torch.cdist(real, real), within)
        ) / scale
    return Drift(x * (units / scale), total, apart)


def mean_where(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of x [L, N, M] over pairs [N, M] that the mask names; 0 where it names none."""
    return (x * mask).sum() / (mask.sum() * len(x)).clamp(min=1)


def drift_loss(found: Drift) -> Tensor:
    """The mean of |f - sg(f + V)|^2 as far as its slope goes (Deng 2026, eq. 26); a scalar.

    Its value is the energy distance, which falls as the distributions meet; the square itself hardly changes
    from first to last, as the field is normalised.
    """
    towards = (found.features - (found.features + found.field).detach()).square().mean()
    return towards - towards.detach() + found.apart
