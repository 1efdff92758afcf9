"""Losses, against numbers of public implementations."""

import math

import pytest
import torch
from torch import Tensor

from limner.losses import adversarial
from limner.losses.adversarial import gradient_penalty, relativistic_d, relativistic_g, squared_gradient_norm
from limner.losses.autoencoding import kl_gaussian, nll_bernoulli, nll_gaussian
from limner.losses.distillation import centre_and_sharpen, self_distillation, sinkhorn
from tests.helpers import golden

REAL = torch.tensor([1.5, -0.3, 0.2, 2.1], dtype=torch.float64)
FAKE = torch.tensor([-0.7, 0.4, 1.2, -2.0], dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hinge_d", 1.5),
        ("hinge_g", 0.275),
        ("non_saturating_d", 1.16895967366976),
        ("non_saturating_g", 1.0016029449166037),
        ("least_squares_d", 1.235),
        ("least_squares_g", 3.0725),
        ("wasserstein_d", -1.15),
        ("wasserstein_g", 0.275),
    ],
)
def test_gan_losses(name: str, expected: float) -> None:
    scores = (REAL, FAKE) if name.endswith("_d") else (FAKE,)
    assert getattr(adversarial, name)(*scores).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["hinge", "non_saturating", "least_squares", "wasserstein"])
def test_both_losses_move_fake_scores_in_opposite_directions(name: str) -> None:
    fake = torch.zeros(4, requires_grad=True)
    (down,) = torch.autograd.grad(getattr(adversarial, f"{name}_d")(torch.ones(4), fake), fake)
    (up,) = torch.autograd.grad(getattr(adversarial, f"{name}_g")(fake), fake)
    assert name == "least_squares" or (down > 0).all()  # at the label 0 least squares is at rest
    assert (up < 0).all()


def test_kl_gaussian() -> None:
    mean = torch.tensor([[0.15, -0.808, 0.425], [0.176, -0.198, 0.209]], dtype=torch.float64)
    logvar = torch.tensor([[-1.051, 1.184, -0.656], [-1.029, -0.182, 1.707]], dtype=torch.float64)
    expected = torch.tensor([1.2574588179372346, 1.660612967582276], dtype=torch.float64)
    torch.testing.assert_close(kl_gaussian(mean, logvar), expected, rtol=1e-9, atol=1e-9)


def test_likelihoods_are_those_of_torch_distributions() -> None:
    drawn, image = torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4) * 2 - 1
    normal = torch.distributions.Normal(drawn, 0.3)
    torch.testing.assert_close(nll_gaussian(drawn, image, 0.3), -normal.log_prob(image).flatten(1).sum(1))
    ink = (image > 0).float()
    coin = torch.distributions.Bernoulli(logits=drawn)
    torch.testing.assert_close(nll_bernoulli(drawn, 2 * ink - 1), -coin.log_prob(ink).flatten(1).sum(1))


def test_sigma_zero_is_the_optimal_sigma() -> None:
    drawn, image = torch.randn(3, 8), torch.randn(3, 8)
    fitted = nll_gaussian(drawn, image).mean()
    best = math.sqrt((drawn - image).square().mean())
    assert fitted.item() == pytest.approx(nll_gaussian(drawn, image, best).mean().item(), rel=1e-5)
    assert all(fitted < nll_gaussian(drawn, image, best * factor).mean() for factor in (0.9, 1.1))


def test_self_distillation_is_dinos() -> None:
    student = [[-0.038, -1.199, 0.722, 1.926, -0.291, 1.202], [0.886, -0.425, 0.64, -0.237, 1.177, 0.093],
               [-0.34, 0.651, 1.156, 1.499, 0.551, -0.331], [0.585, 1.551, -0.35, 0.658, 0.53, 1.77],
               [0.723, -1.085, 0.296, 0.74, 0.071, -0.621], [-1.299, -0.76, 0.228, 0.276, 0.062, 1.142],
               [-1.21, 0.747, 2.468, -0.177, -0.152, -1.003], [2.649, -1.577, -1.357, -0.84, -1.419, 0.007],
    ]  # fmt: skip
    teacher = [[-0.875, -0.782, 1.215, 0.118, 0.542, -0.85], [-0.393, 0.059, 1.505, 1.281, 0.616, 0.17],
               [0.976, 0.053, -0.152, 0.238, -0.489, -0.371], [1.872, 1.611, 0.037, 1.136, 0.41, 1.47]]  # fmt: skip
    centre = torch.tensor([0.124, -0.054, -0.162, 0.102, 0.059, 0.063], dtype=torch.float64)
    s = torch.tensor(student, dtype=torch.float64).unflatten(0, (4, 2))  # four views of two images
    t = torch.tensor(teacher, dtype=torch.float64).unflatten(0, (2, 2))
    assert self_distillation(s, centre_and_sharpen(t, centre, 0.04), 0.1).item() == pytest.approx(
        14.099220227183844, rel=1e-9
    )
    moved = centre.lerp(t.flatten(0, 1).mean(0), 0.1)
    expected = [0.1511, -0.025074999999999997, -0.08067500000000002, 0.161125, 0.08007500000000001, 0.067175]
    torch.testing.assert_close(moved, torch.tensor(expected, dtype=torch.float64))


def test_sinkhorn_uses_prototypes_equally_often() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 8, 4, dtype=torch.float64) + torch.tensor([3.0, 0, 0, 0])  # one is liked by all
    says = sinkhorn(scores, temperature=0.5, rounds=50)
    torch.testing.assert_close(says.sum(2), torch.ones(2, 8, dtype=torch.float64))
    torch.testing.assert_close(says.sum((0, 1)), torch.full((4,), 4.0, dtype=torch.float64))
    assert (says.flatten(0, 1).argmax(1).bincount(minlength=4) > 0).all()


def test_gradient_penalties() -> None:
    given, expected = golden("gradient_penalties")

    def critic(x: Tensor) -> Tensor:
        return (x * given["w"]).flatten(1).sum(1) + 0.5 * x.square().flatten(1).sum(1)

    real, fake = given["real"].requires_grad_(), given["fake"].requires_grad_()
    r1, r2 = squared_gradient_norm(critic(real), real), squared_gradient_norm(critic(fake), fake)
    close(r1, expected["r1_per_sample"])
    close(10 / 2 * r1.mean(), torch.tensor(expected["stylegan2_r1_gamma10"], dtype=torch.float64))
    close(2 / 2 * (r1.mean() + r2.mean()), torch.tensor(expected["r3gan_gamma2"], dtype=torch.float64))
    part = given["mix_alpha"][:, None, None, None]
    mixed = real.lerp(fake, part).detach().requires_grad_()
    found = 10 * gradient_penalty(critic(mixed), mixed)
    close(found, torch.tensor(expected["wgangp_lambda10"], dtype=torch.float64))


def test_relativistic_scores_are_compared_pair_by_pair() -> None:
    given, expected = golden("gan_losses")
    real, fake = given["real"], given["fake"]
    assert relativistic_d(real, fake).item() == pytest.approx(expected["rpgan_d"], rel=1e-9)
    assert relativistic_g(real, fake).item() == pytest.approx(expected["rpgan_g"], rel=1e-9)
    assert relativistic_d(real, fake) != relativistic_d(real, fake.flip(0))
