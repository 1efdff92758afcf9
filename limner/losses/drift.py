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


class Pairs(NamedTuple):
    """Which pairs of N samples, P images and N samples again (with guidance, P images again) count, and how much."""

    bias: Tensor  # [N, P + N] or [N, P + N + P]: what is added to a pair's logit
    images: Tensor  # [P, P], how much two images are of one class, and not the same one


def pairs(sample: Tensor, image: Tensor, guidance: Tensor | None = None) -> Pairs:
    """The pairs of samples of classes ``sample`` [N] and images of classes ``image`` [P].

    Positives are the images of a sample's class, negatives the other samples of it and, with ``guidance`` [N]
    (alpha >= 1), the images of all other classes, weighted so that the equilibrium is alpha times the class's
    distribution less alpha - 1 times theirs (Deng 2026, A.7). So it is for two classes a step; with more, images to be
    led away from are shared by the samples of several, and guidance is weaker than in the paper, class by class.
    """
    same, rival, images = (
        one[:, None] == other for one, other in ((sample, image), (sample, sample), (image, image))
    )
    rival, images = rival.fill_diagonal_(False), images.fill_diagonal_(False)
    parts = [torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, FAR) for mask in (same, rival)]
    if guidance is not None:
        others, rivals = (~same).sum(1), rival.sum(1)  # how many of each a sample has, [N]
        share = (guidance - 1).clamp(min=0) * rivals / others.clamp(min=1)  # weight of one image
        away = share.clamp(min=1e-30).log()[:, None].expand(same.shape)
        parts.append(away.masked_fill(same | (share <= 0)[:, None], FAR))
    return Pairs(torch.cat(parts, dim=1), images)


def pairs_alike(likeness: Tensor, sample: Tensor, keep: Tensor, temperature: float) -> Pairs:
    """The pairs of P images of which no two need be of one class, and N samples of some images' conditions.

    ``likeness`` [P, P] says how alike the images' conditions are, from 0 to 1; ``sample`` [N] whose condition each
    sample has; those that ``keep`` [N] is False for were drawn without it. A pair counts exp((likeness - 1) /
    temperature), so the field is Deng 2026's of images and conditions together, with a kernel that is a product,
    and moves the images. Samples without a condition have all images, and each other.
    """
    log = (likeness - 1) / temperature  # [P, P]
    log = log.masked_fill(log < -20, FAR)
    to_images = log[sample].masked_fill(~keep[:, None], 0)  # [N, P]
    rivals = log[sample][:, sample].masked_fill(~keep[:, None], 0)  # [N, N]
    rivals = rivals.masked_fill(keep[:, None] != keep, FAR).fill_diagonal_(FAR)
    return Pairs(torch.cat([to_images, rivals], dim=1), log.exp().fill_diagonal_(0))


def drift(x: Tensor, real: Tensor, among: Pairs, temperatures: Sequence[float]) -> Drift:
    """The samples' features [L, N, D] beside those of images [L, P, D], at L places that share their scales.

    Features are scaled to a mean distance of sqrt(D), temperatures are in units of that, and the field of each is
    scaled to a mean square of 1 before they are added up (Deng 2026, A.6).
    """
    x, real, bias = x.float(), real.float(), among.bias
    n, p = x.shape[-2], real.shape[-2]
    with torch.no_grad():
        others = torch.cat([real, x, real] if bias.shape[1] > p + n else [real, x], dim=-2)  # [L, M, D]
        distance = torch.cdist(x, others)  # [L, N, M]
        counts = (bias > FAR / 2).float()
        scale = (distance * counts).sum() / (counts.sum() * len(x))  # the mean distance
        scale = scale.clamp(min=1e-6)
        units = x.shape[-1] ** 0.5
        total = torch.zeros_like(x)
        for temperature in temperatures:
            push = weights(distance / scale, p, temperature, bias) @ others * (units / scale)
            total += push / push.square().mean().sqrt().clamp(min=1e-12)
        apart = (
            2 * mean_by(distance[..., :p], bias[:, :p].exp())
            - mean_by(distance[..., p : p + n], bias[:, p : p + n].exp())
            - mean_by(torch.cdist(real, real), among.images.float())
        ) / scale
    return Drift(x * (units / scale), total, apart)


def mean_by(x: Tensor, weight: Tensor) -> Tensor:
    """The mean of rows' means of x [L, N, M], pairs weighed by [N, M]; rows of no weight do not count."""
    total = weight.sum(-1)  # [N]
    rows = (x * weight).sum(-1) / total.clamp(min=1e-12)  # [L, N]
    return rows.sum() / ((total > 0).sum() * len(x)).clamp(min=1)


def drift_loss(found: Drift) -> Tensor:
    """The mean of |f - sg(f + V)|^2 as far as its slope goes (Deng 2026, eq. 26); a scalar.

    Its value is the energy distance, which falls as the distributions meet; the square itself hardly changes
    from first to last, as the field is normalised.
    """
    towards = (found.features - (found.features + found.field).detach()).square().mean()
    return towards - towards.detach() + found.apart
