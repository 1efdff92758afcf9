"""Losses of a discriminator (``*_d``) and a generator (``*_g``): logits of any shape -> scalars; gradient penalties."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.networks.gans.convolve import no_weight_gradients


def non_saturating_d(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross-entropy with real as 1 and fake as 0 (Goodfellow 2014, eq. 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_g(fake: Tensor) -> Tensor:
    """Binary cross-entropy with fake as 1: -log D(G(z)) instead of log(1 - D(G(z))) (Goodfellow 2014, 3)."""
    return F.softplus(-fake).mean()


def least_squares_d(real: Tensor, fake: Tensor) -> Tensor:
    """Half the mean squared error to 1 for real and 0 for fake (Mao 2017, eq. 2 with a=0, b=1)."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def least_squares_g(fake: Tensor) -> Tensor:
    """Mean squared error to 1 (Mao 2017, c=1; without its factor of one half, as CycleGAN)."""
    return (fake - 1).square().mean()


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss with margin 1 (Lim and Ye 2017; Miyato 2018, eq. 16)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_g(fake: Tensor) -> Tensor:
    """Minus the mean logit of fakes (Miyato 2018, eq. 17)."""
    return -fake.mean()


def wasserstein_d(real: Tensor, fake: Tensor) -> Tensor:
    """Minus the estimated Wasserstein distance (Arjovsky 2017), for a Lipschitz critic."""
    return fake.mean() - real.mean()


def wasserstein_g(fake: Tensor) -> Tensor:
    """Minus the mean logit of fakes (Arjovsky 2017, algorithm 1)."""
    return -fake.mean()


def relativistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """Each fake logit relative to its paired real one (Jolicoeur-Martineau 2019; Huang 2024, eq. 2)."""
    return F.softplus(fake - real).mean()


def relativistic_g(real: Tensor, fake: Tensor) -> Tensor:
    """`relativistic_d` with real and fake exchanged."""
    return F.softplus(real - fake).mean()


def squared_gradient_norm(scores: Tensor, images: Tensor) -> Tensor:
    """[B] squared norms of the gradients of scores by their images [B, ...], differentiable.

    R1 is gamma / 2 times its mean over real images, R2 over fakes (Mescheder 2018, eq. 9). ``images`` must
    require gradients.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def r1_penalty(discriminator: Callable[[Tensor], Tensor], image: Tensor, gamma: float) -> Tensor:
    """gamma / 2 * |grad D(x)|^2, averaged over the images [B, ...], in float32 and differentiable (Mescheder 2018)."""
    with torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        image = image.detach().requires_grad_()
        scores = discriminator(image)
        with no_weight_gradients():
            return gamma / 2 * squared_gradient_norm(scores, image).mean()


def mean_score_penalty(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, gamma: float
) -> Tensor:
    """R1 of the real and R2 of the fake images [B, ...], each times gamma / 2, of the mean of an image's scores."""
    both = torch.cat([real, fake])
    return 2 * r1_penalty(lambda x: discriminator(x).flatten(1).mean(1), both, gamma)


def gradient_penalty(scores: Tensor, images: Tensor, target: float = 1.0) -> Tensor:
    """Mean squared distance of the gradient's norm from ``target``, at mixed images (Gulrajani 2017, eq. 3)."""
    return (squared_gradient_norm(scores, images).sqrt() - target).square().mean()
