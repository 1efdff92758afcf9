"""Losses against numbers that the public implementations gave."""

import math

import pytest
import torch

from limner.losses import adversarial
from limner.losses.variational import kl_gaussian, nll_bernoulli, nll_gaussian

REAL = torch.tensor([1.5, -0.3, 0.2, 2.1], dtype=torch.float64)
FAKE = torch.tensor([-0.7, 0.4, 1.2, -2.0], dtype=torch.float64)


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
