"""The optimisers: Muon's orthogonal updates against the plain iteration, and its state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from limner.settings import Optimiser
from limner.training.optim import Muon, make_optimiser, orthogonal


def newton_schulz(x: Tensor, steps: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    """The iteration as it is written (Jordan 2024)."""
    x = x.to(dtype) / x.to(dtype).norm()
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (24, 200), (64, 16)])
@pytest.mark.parametrize("condition", [0, 6])
def test_orthogonal_is_the_plain_iteration(rows: int, columns: int, condition: int) -> None:
    """Also for matrices whose singular values span six orders of magnitude."""
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(2, rows, columns), full_matrices=False)
    matrices = (u * 10 ** torch.linspace(0, -condition, s.shape[1])) @ v
    got = orthogonal(matrices)
    for one, other in zip(got, matrices, strict=True):
        wanted = newton_schulz(other if rows <= columns else other.mT)
        wanted = wanted if rows <= columns else wanted.mT
        torch.testing.assert_close(one.double(), wanted, atol=2e-4, rtol=0)
    if not condition:
        values = torch.linalg.svdvals(got)
        assert values.min() > 0.5 and values.max() < 1.3


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (64, 640), (96, 32)])
@pytest.mark.parametrize("condition", [0, 2, 6, math.inf])
def test_orthogonal_in_bf16_keeps_to_its_range(rows: int, columns: int, condition: float) -> None:
    """No rounding error grows more than in the plain iteration in bf16: not of tiny or no singular values (``inf``)."""
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(2, rows, columns), full_matrices=False)
    power = torch.linspace(0, 1, s.shape[1])
    sizes = (power == 0).float() if math.isinf(condition) else 10 ** (-condition * power)
    matrices = (u * sizes) @ v * 1e-4
    exact, got = orthogonal(matrices), orthogonal(matrices, torch.bfloat16).float()
    turned = matrices if rows <= columns else matrices.mT
    plain = torch.stack([newton_schulz(x, dtype=torch.bfloat16) for x in turned]).float()
    plain = plain if rows <= columns else plain.mT
    assert (got - exact).norm() < 1.2 * (plain - exact).norm() + 0.05 * exact.norm()
    values = torch.linalg.svdvals(got)
    assert values.max() < 1.25
    if condition <= 2:
        assert values.min() > 0.6


def test_orthogonal_in_bf16_does_not_diverge_near_rank_1() -> None:
    """As gradients are at the start of a training."""
    torch.manual_seed(0)
    for rows, columns in ((4, 432), (48, 432), (48, 128)):
        u, s, v = torch.linalg.svd(torch.randn(200 if rows == 4 else 10, rows, columns), full_matrices=False)
        s[:] = torch.cat([torch.ones(1), 0.05 * 0.3 ** torch.arange(s.shape[1] - 1)])
        got = orthogonal(u * s[:, None] @ v, torch.bfloat16).float()
        assert torch.linalg.matrix_norm(got, 2).max() < 1.25


def test_orthogonal_of_nothing_is_nothing() -> None:
    for products in (torch.float32, torch.bfloat16):
        assert not orthogonal(torch.zeros(1, 4, 8), products).any()


def test_what_is_no_matrix_moves_by_adamw() -> None:
    """To rounding, over steps with gradients of any size."""
    torch.manual_seed(0)
    one, other = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
    muon = make_optimiser(one, Optimiser("muon", lr=0.01, decay=0.1))
    adamw = make_optimiser(other, Optimiser("adamw", lr=0.01, decay=0.1))
    for step in range(5):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            a.grad = torch.randn_like(a) * 10.0**-step
            b.grad = a.grad.clone()
        muon.step()
        adamw.step()
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
def test_muon_moves_every_matrix_by_its_rate_whatever_the_gradient(products: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8)).to(memory_format=torch.channels_last)
    before = net[0].weight.detach().clone()
    optimiser = Muon(net, Optimiser("muon", matrix_lr=0.1))
    optimiser.products = products
    torch.manual_seed(0)
    for p in net.parameters():
        p.grad = torch.randn_like(p) * 1e-5
    optimiser.step()
    values = torch.linalg.svdvals((net[0].weight - before).detach().flatten(1) / 0.1)
    assert values.min() > 0.5 and values.max() < 1.3


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_each_finds_a_minimum(name: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(6, 3), torch.randn(64, 6)
    target = x @ torch.randn(6, 3)
    optimiser = make_optimiser(
        net, Optimiser(name, lr=0.05, matrix_lr=0.05, momentum=0.9 if name == "sgd" else 0.0)
    )  # type: ignore[arg-type]
    for step in range(200):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 200)
        optimiser.zero_grad()
        loss = (net(x) - target).square().mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.01


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_decay_is_decoupled(name: str) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    optimiser = make_optimiser(module, Optimiser(name, lr=0.1, decay=0.01))
    module.weight.grad = torch.zeros_like(module.weight)
    optimiser.step()
    torch.testing.assert_close(module.weight.detach(), torch.tensor([[0.999]]))
