"""Losses of style transfer, between feature maps [B, C, H, W] of a fixed network; scalars, the mean over pictures.

Conventions of the Gram matrix differ: divided by C H W (Johnson 2016), by H W, or not at all (Gatys 2016). Its loss is
the mean of squared differences, or Gatys' sum over 4 C^2 (H W)^2: C^2 / 4 times that of matrices over C H W.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from limner.networks.restyle import mean_std


def gram_matrix(features: Tensor, over: Literal["chw", "hw", ""] = "chw") -> Tensor:
    """[B, C, H, W] -> [B, C, C], the products of channels summed over places, divided by the sizes in ``over``."""
    x = exact(features).flatten(2)  # [B, C, H W]
    channels, places = x.shape[1:]
    return x @ (x / {"chw": channels * places, "hw": places, "": 1}[over]).mT  # [B, C, C]


def gram_loss(grams: Sequence[Tensor], targets: Sequence[Tensor], relative: bool = False) -> Tensor:
    """Mean squared difference of Gram matrices [B, C, C], summed over layers (Johnson 2016, eq. 4, over C^2)."""
    pairs = zip(grams, targets, strict=True)
    return torch.stack([squared_error(gram, target, relative) for gram, target in pairs]).sum()


def gatys_style_loss(features: Tensor, target: Tensor) -> Tensor:
    """Of the feature maps of one layer, of one size (Gatys 2016, eq. 4)."""
    channels, places = features.shape[1], features[0, 0].numel()
    difference = gram_matrix(features, "") - gram_matrix(target, "")
    return difference.square().sum((1, 2)).mean() / (4 * channels**2 * places**2)


def content_loss(features: Tensor, target: Tensor, relative: bool = False) -> Tensor:
    """Mean squared difference of feature maps (Johnson 2016, eq. 2)."""
    return squared_error(exact(features), exact(target), relative)


def gatys_content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Half the sum of squared differences of feature maps (Gatys 2016, eq. 1)."""
    return 0.5 * (exact(features) - exact(target)).square().flatten(1).sum(1).mean()


def total_variation(image: Tensor) -> Tensor:
    """Squared differences of neighbouring pixels, summed over a picture [B, C, H, W] (Johnson 2016, section 3.2)."""
    image = exact(image)
    down = (image[..., 1:, :] - image[..., :-1, :]).square().flatten(1).sum(1)
    across = (image[..., 1:] - image[..., :-1]).square().flatten(1).sum(1)
    return (down + across).mean()


def statistics_loss(one: Sequence[Tensor], other: Sequence[Tensor], relative: bool = False) -> Tensor:
    """Mean squared differences of channels' means and of their deviations, summed over layers (Huang 2017, eq. 13)."""
    terms = [
        squared_error(of_one, of_other, relative)
        for a, b in zip(one, other, strict=True)
        for of_one, of_other in zip(mean_std(exact(a)), mean_std(exact(b)), strict=True)
    ]
    return torch.stack(terms).sum()


def contrastive_loss(drawn: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Style signals [B, C], of painted pictures and of the styles they were painted in (Wang 2023, eq. 7).

    The squared distance to a picture's own style over the sum of those to the others' of the batch, summed over the
    batch; 0 of a single picture. As published, and not as its code has it, which takes one term from the painted ones.
    """
    squares = [(a[:, None] - b[None]).square().mean(2) for a, b in zip(drawn, wanted, strict=True)]  # [B, B]
    distance = torch.stack(squares).sum(0)
    if len(distance) == 1:
        return 0 * distance.sum()
    own = distance.diagonal()
    return (own / (distance.sum(1) - own + 1e-8)).sum()


def squared_error(found: Tensor, wanted: Tensor, relative: bool = False) -> Tensor:
    """The mean over pictures of mean squared differences; ``relative``: each over the mean square of what is wanted."""
    error = (found - wanted).square().flatten(1).mean(1)  # [B]
    if relative:
        error = error / wanted.square().flatten(1).mean(1).clamp(min=1e-8)
    return error.mean()


def exact(x: Tensor) -> Tensor:
    """At least float32: sums over a picture overflow half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
