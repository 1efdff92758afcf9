"""The drifting field: which way generated samples should move to be distributed as the data are (Deng 2026).

N samples are compared with P images at L positions of a space of D features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EXCLUDED = -1e9  # logit of a pair that does not count; finite, so that a softmax over such pairs is defined


class Drift(NamedTuple):
    features: Tensor  # [L, N, D], the samples' features, normalised; differentiable
    field: Tensor  # [L, N, D], where they should move: for each temperature, of mean square 1
    energy_distance: Tensor  # between samples and images, a scalar: 0 where they are distributed alike


class Pairs(NamedTuple):
    """Which pairs count, and how much: of samples with images, with samples and, for guidance, with images again."""

    bias: Tensor  # [N, P + N] or [N, P + N + P], added to a pair's logit
    images: Tensor  # [P, P], how much two different images are of one class


def pairs_by_class(sample: Tensor, image: Tensor, guidance: Tensor | None = None) -> Pairs:
    """The pairs of samples of classes ``sample`` [N] and images of classes ``image`` [P].

    Positives are the images of a sample's class. Negatives are the other samples of it and, with ``guidance`` [N]
    (alpha >= 1), the images of all other classes, weighted so that the equilibrium is alpha times the class's
    distribution minus alpha - 1 times theirs (Deng 2026, A.7). This is exact for two classes a step. With more,
    samples of several classes share the same negative images, so guidance is weaker than in the paper.
    """
    same = sample[:, None] == image  # [N, P]
    rival = (sample[:, None] == sample).fill_diagonal_(False)  # [N, N]
    images = (image[:, None] == image).fill_diagonal_(False)  # [P, P]
    parts = [torch.where(mask, 0.0, EXCLUDED) for mask in (same, rival)]
    if guidance is not None:
        others, rivals = (~same).sum(1), rival.sum(1)  # how many of each a sample has, [N]
        weight = (guidance - 1).clamp(min=0) * rivals / others.clamp(min=1)  # of one image, [N]
        away = weight.clamp(min=1e-30).log()[:, None].expand(same.shape)
        parts.append(away.masked_fill(same | (weight <= 0)[:, None], EXCLUDED))
    return Pairs(torch.cat(parts, dim=1), images)


def pairs_by_similarity(similarity: Tensor, sample: Tensor, keep: Tensor, temperature: float) -> Pairs:
    """The pairs of P images that need not share a condition, and N samples of some of these conditions.

    ``similarity`` [P, P] of the images' conditions is from 0 to 1; ``sample`` [N] is the index of each sample's
    condition; where ``keep`` [N] is False the sample was drawn without it. A pair counts exp((similarity - 1) /
    temperature): the field of Deng 2026 over images and conditions together, with a product of kernels, that moves
    the images alone. Samples without a condition are compared with all images and with each other.
    """
    log = (similarity - 1) / temperature  # [P, P]
    log = log.masked_fill(log < -20, EXCLUDED)
    to_images = log[sample].masked_fill(~keep[:, None], 0)  # [N, P]
    rivals = log[sample][:, sample].masked_fill(~keep[:, None], 0)  # [N, N]
    rivals = rivals.masked_fill(keep[:, None] != keep, EXCLUDED).fill_diagonal_(EXCLUDED)
    return Pairs(torch.cat([to_images, rivals], dim=1), log.exp().fill_diagonal_(0))


def kernel_weights(distance: Tensor, positives: int, temperature: float, bias: Tensor) -> Tensor:
    """[..., N, P + M] distances to P positives and then M negatives -> signed weights of the same shape.

    The kernel exp(-distance / temperature) is normalised along both axes, the geometric mean of two softmaxes,
    and each side is weighted by the other's sum, so that a row sums to 0 (Deng 2026, eq. 11 and algorithm 2).
    ``bias`` is added to the logits: the logarithm of a pair's weight, or ``EXCLUDED``.
    """
    logits = bias - distance / temperature
    kernel = (logits.softmax(-1) * logits.softmax(-2)).sqrt() * (bias > EXCLUDED / 2)
    attract, repel = kernel[..., :positives], kernel[..., positives:]
    attract, repel = attract * repel.sum(-1, keepdim=True), repel * attract.sum(-1, keepdim=True)
    return torch.cat([attract, -repel], dim=-1)


def drift(x: Tensor, real: Tensor, pairs: Pairs, temperatures: Sequence[float]) -> Drift:
    """The field of samples' features x [L, N, D] among images' features [L, P, D]. All positions share their scales.

    Features are scaled to a mean distance of sqrt(D), temperatures are in units of that, and the field of each is
    scaled to a mean square of 1 before they are summed (Deng 2026, A.6).
    """
    x, real, bias = x.float(), real.float(), pairs.bias
    n, p = x.shape[-2], real.shape[-2]
    with torch.no_grad():
        others = torch.cat([real, x, real] if bias.shape[1] > p + n else [real, x], dim=-2)  # [L, M, D]
        distance = torch.cdist(x, others)  # [L, N, M]
        counts = (bias > EXCLUDED / 2).float()
        scale = ((distance * counts).sum() / (counts.sum() * len(x))).clamp(min=1e-6)  # the mean distance
        units = x.shape[-1] ** 0.5
        total = torch.zeros_like(x)
        for temperature in temperatures:
            push = kernel_weights(distance / scale, p, temperature, bias) @ others * (units / scale)
            total += push / push.square().mean().sqrt().clamp(min=1e-12)
        energy = (
            2 * mean_of_rows(distance[..., :p], bias[:, :p].exp())
            - mean_of_rows(distance[..., p : p + n], bias[:, p : p + n].exp())
            - mean_of_rows(torch.cdist(real, real), pairs.images.float())
        ) / scale
    return Drift(x * (units / scale), total, energy)


def mean_of_rows(x: Tensor, weight: Tensor) -> Tensor:
    """The mean of the weighted means of rows of x [L, N, M], weights [N, M]; rows of no weight do not count."""
    total = weight.sum(-1)  # [N]
    rows = (x * weight).sum(-1) / total.clamp(min=1e-12)  # [L, N]
    return rows.sum() / ((total > 0).sum() * len(x)).clamp(min=1)


def drift_loss(found: Drift) -> Tensor:
    """mean |f - sg(f + V)|^2 (Deng 2026, eq. 26): its gradient follows the field, its value hardly changes."""
    return (found.features - (found.features + found.field).detach()).square().mean()


def compared_features(image: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Image [B, C, H, W] and feature maps [B, D, h, w] -> what samples are compared in, [B, D', L] each.

    The image itself, each map, its mean and standard deviation over all and over 2x2 positions, and the last map
    as one vector (Deng 2026, A.5).
    """
    features = [image.flatten(1)[:, :, None]]  # [B, CHW, 1]
    for x in maps:
        # Two views: with one, its gradients would add up in another order, to other last bits.
        features.append(x.flatten(2))  # [B, D, hw]
        flat = x.flatten(2)
        features.append(flat.mean(2, keepdim=True))  # [B, D, 1]
        features.append(flat.var(2, keepdim=True, correction=0).add(1e-4).sqrt())  # [B, D, 1]
        if min(x.shape[-2:]) > 2:
            mean = F.avg_pool2d(x, 2, ceil_mode=True)  # [B, D, h/2, w/2]
            square = F.avg_pool2d(x.square(), 2, ceil_mode=True)
            std = (square - mean.square()).clamp(min=0).add(1e-4).sqrt()
            features += [mean.flatten(2), std.flatten(2)]
    return [*features, maps[-1].flatten(1)[:, :, None]]
