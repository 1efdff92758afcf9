"""Adaptive augmentation against its formulas in float64: matrices, order, chances, resampling, the controller."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limner.networks.images import augment as A

WIDE = 10_000  # so wide that a move by whole pixels is never one of none


def close(found: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def smooth(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)


# ---- the matrices


def test_geometry_of_one_kind_each() -> None:
    point = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    close((A.translate2d(number(5), number(-1)) @ point)[0], point.new_tensor([8, 1, 1]))
    close((A.scale2d(number(2), number(0.5)) @ point)[0], point.new_tensor([6, 1, 1]))
    close((A.rotate2d(number(math.pi / 2)) @ point)[0], point.new_tensor([-2, 3, 1]))


def test_colours_of_one_kind_each() -> None:
    colour = torch.tensor([0.9, 0.1, -0.4, 1.0], dtype=torch.float64)
    grey = colour[:3].mean()
    close((A.shift3d(number(0.2)) @ colour)[0, :3], colour[:3] + 0.2)
    close((A.scale3d(number(3)) @ colour)[0, :3], colour[:3] * 3)
    close((A.flip_luma(number(1)) @ colour)[0, :3], colour[:3] - 2 * grey)
    close((A.flip_luma(number(0)) @ colour)[0], colour)
    close((A.saturate(number(0)) @ colour)[0, :3], grey.expand(3))
    close((A.saturate(number(2)) @ colour)[0, :3], 2 * colour[:3] - grey)
    third = (A.rotate_hue(number(2 * math.pi / 3)) @ colour)[0]
    close(third, colour[[2, 0, 1, 3]])  # red becomes green becomes blue
    turned = (A.rotate_hue(number(0.7)) @ colour)[0, :3]
    close(turned.mean(), grey)
    close(turned.norm(), colour[:3].norm())


def test_geometry_is_the_inverse_of_the_papers_steps_in_their_order() -> None:
    """Appendix B multiplies forward transformations; the same draws, in numbers of its own, must undo ours."""
    n, height, width, chance = 64, 20, 30, 0.7
    torch.manual_seed(4)
    found = A.geometry(n, height, width, chance, mirror=True).double()

    torch.manual_seed(4)

    def draw() -> Tensor:
        return torch.rand(n).double()

    def forward(a: Tensor, b: Tensor, c: Tensor, d: Tensor, x: Tensor, y: Tensor) -> Tensor:
        nothing, chosen = torch.zeros(n).double(), torch.rand(n) < chances
        matrix = torch.stack([a, b, x, c, d, y, nothing, nothing, nothing + 1], 1).reshape(n, 3, 3)
        return torch.where(chosen[:, None, None], matrix, torch.eye(3).double())

    def turn(angle: Tensor) -> Tensor:
        return forward(angle.cos(), -angle.sin(), angle.sin(), angle.cos(), none, none)

    none, one = torch.zeros(n).double(), torch.ones(n).double()
    steps, chances = [], chance
    steps.append(forward(1 - 2 * (2 * draw()).floor(), none, none, one, none, none))
    steps.append(turn(-(4 * draw()).floor() * math.pi / 2))
    x, y = (draw() * 0.25 - 0.125) * width, (draw() * 0.25 - 0.125) * height
    steps.append(forward(one, none, none, one, -x.round(), -y.round()))
    size = (0.2 * torch.randn(n)).double().exp2()
    steps.append(forward(size, none, none, size, none, none))
    chances = 1 - math.sqrt(1 - chance)
    steps.append(turn(-(2 * draw() - 1) * math.pi))
    chances, stretch = chance, (0.2 * torch.randn(n)).double().exp2()
    steps.append(forward(stretch, none, none, 1 / stretch, none, none))
    chances = 1 - math.sqrt(1 - chance)
    steps.append(turn(-(2 * draw() - 1) * math.pi))
    chances, x, y = chance, torch.randn(n).double() / 8 * width, torch.randn(n).double() / 8 * height
    steps.append(forward(one, none, none, one, -x, -y))
    whole = torch.eye(3).double().expand(n, 3, 3)
    for step in steps:
        whole = step @ whole
    close(found @ whole, torch.eye(3).double().expand(n, 3, 3), atol=2e-4)  # ours is in float32


def test_each_augmentation_has_its_probability() -> None:
    n, p = 40_000, 0.3
    torch.manual_seed(0)
    still = (A.geometry(n, WIDE, WIDE, p, mirror=True) == torch.eye(3)).flatten(1).all(1).double().mean()
    assert still.item() == pytest.approx((1 - p / 2) * (1 - 3 * p / 4) * (1 - p) ** 5, abs=0.008)
    still = (A.geometry(n, WIDE, WIDE, p, mirror=False) == torch.eye(3)).flatten(1).all(1).double().mean()
    assert still.item() == pytest.approx((1 - 3 * p / 4) * (1 - p) ** 5, abs=0.008)
    same = torch.isclose(A.colours(n, p), torch.eye(4), atol=1e-6).flatten(1).all(1).double().mean()
    assert same.item() == pytest.approx((1 - p / 2) * (1 - p) ** 4, abs=0.008)


def test_augmentations_are_as_strong_as_published() -> None:
    n = 40_000
    torch.manual_seed(1)
    g = A.geometry(n, 64, 64, 1.0, mirror=True).double()
    size = -torch.linalg.det(g).abs().log2() / 2
    assert size.mean().item() == pytest.approx(0, abs=0.005) and size.std().item() == pytest.approx(
        0.2, rel=0.03
    )
    assert (torch.linalg.det(g) < 0).double().mean().item() == pytest.approx(0.5, abs=0.01)
    ratio = torch.linalg.svdvals(g[:, :2, :2]).log2()
    assert (ratio[:, 0] - ratio[:, 1]).square().mean().sqrt().item() == pytest.approx(0.4, rel=0.03)
    c = A.colours(n, 1.0).double()
    grey = torch.tensor([1, 1, 1, 0]).double() / 3**0.5
    along = torch.einsum("i,nij,j->n", grey, c, grey)
    assert along.abs().log2().std().item() == pytest.approx(0.5, rel=0.03), "contrast"
    assert (along < 0).double().mean().item() == pytest.approx(0.5, abs=0.01), "luma flip"
    part = torch.linalg.det(c[:, :3, :3]).abs() / along.abs()  # (contrast * saturation) ** 2
    saturation = (part.sqrt() / along.abs()).log2()
    assert saturation.std().item() == pytest.approx(1.0, rel=0.03)


# ---- the images


def test_sym6_is_orthonormal_and_has_six_vanishing_moments() -> None:
    h = torch.tensor(A.SYM6, dtype=torch.float64)
    for shift in range(0, 12, 2):
        close((h[shift:] * h[: 12 - shift]).sum(), torch.tensor(float(shift == 0)).double(), atol=1e-9)
    k = torch.arange(12).double()
    for power in range(6):
        close(((-1) ** k * (k - 5.5) ** power * h).sum(), torch.tensor(0.0).double(), atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (12, 20), (6, 6)])
def test_the_identity_map_keeps_an_image(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(A.warp(x, torch.eye(3).expand(2, 3, 3)), x, atol=1e-9)


def test_whole_pixels_move_exactly_and_edges_are_reflected() -> None:
    x = torch.randn(1, 1, 20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = A.warp(x, A.translate2d(number(1), number(-2)))
    expected = F.pad(x, (0, 1, 2, 0), mode="reflect")[:, :, :20, 1:]
    close(moved, expected, atol=1e-9)
    x = smooth(1, 1, 20, 12)
    moved = A.warp(x, A.translate2d(number(7), number(0)))  # farther than whole pixels ever move: almost
    close(moved, F.pad(x, (0, 7, 0, 0), mode="reflect")[:, :, :, 7:], atol=0.1)


def test_quarter_turns_and_mirrors() -> None:
    x = smooth(1, 3, 24, 24)
    close(A.warp(x, A.rotate2d(number(math.pi / 2))), x.rot90(1, (2, 3)), atol=0.05)
    close(A.warp(x, A.scale2d(number(-1), number(1))), x.flip(3), atol=0.05)


def test_a_ramp_is_zoomed_about_the_middle() -> None:
    across = torch.arange(32).double() - 15.5
    x = across.expand(1, 1, 32, 32) / 16
    zoomed = A.warp(x, A.scale2d(number(0.5), number(0.5)))[:, :, 8:24, 8:24]  # twice as large
    close(zoomed, (0.5 * across / 16).expand(1, 1, 32, 32)[:, :, 8:24, 8:24], atol=2e-3)
    part = A.warp(x, A.translate2d(number(0.3), number(0)))[:, :, 8:24, 8:24]
    close(part, ((across + 0.3) / 16).expand(1, 1, 32, 32)[:, :, 8:24, 8:24], atol=1e-3)


def test_colours_of_grey_and_of_alpha() -> None:
    torch.manual_seed(0)
    matrix, x = A.colours(4, 1.0, grey=True).double(), smooth(4, 1, 8, 8)
    close(A.recolour(x, matrix), A.recolour(x.expand(-1, 3, -1, -1), matrix).mean(1, keepdim=True))
    x = smooth(4, 4, 8, 8)
    changed = A.recolour(x, A.colours(4, 1.0))
    assert torch.equal(changed[:, 3], x[:, 3])
    assert (changed - x)[:, :3].flatten(1).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_probability_zero_changes_nothing(channels: int) -> None:
    x = smooth(4, channels, 16, 24)
    assert torch.equal(A.augment(x, 0.0), x)
    torch.manual_seed(0)
    changed = A.augment(x, 0.5)
    assert changed.shape == x.shape and changed.isfinite().all() and not torch.equal(changed, x)


def test_images_without_geometric_augmentation_are_not_resampled() -> None:
    x = smooth(400, 1, 8, 8)
    torch.manual_seed(0)
    changed = (A.augment(x, 0.02) != x).flatten(1).any(1).double().mean().item()
    assert changed == pytest.approx(1 - (1 - 0.015) * (1 - 0.01) * (1 - 0.02) ** 7, abs=0.06)


def test_second_derivatives_reach_the_image() -> None:
    x = smooth(2, 3, 6, 8).requires_grad_()

    def changed(x: Tensor) -> Tensor:
        torch.manual_seed(2)
        return A.augment(x, 0.9, mirror=True)

    assert torch.autograd.gradcheck(changed, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: changed(x).square(), (x,), fast_mode=True)


def test_bf16_around_it_changes_nothing() -> None:
    x = smooth(2, 3, 16, 16).float()
    torch.manual_seed(5)
    exact = A.augment(x, 0.9)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(5)
        assert torch.equal(A.augment(x, 0.9), exact)


# ---- the controller


@pytest.mark.parametrize(
    ("chance", "overfit", "expected"),
    [(0.2, 0.7, 0.3), (0.2, 0.5, 0.1), (0.2, 0.6, 0.2), (0.05, 0.1, 0.0), (0.78, 0.9, 0.8)],
)
def test_the_probability_follows_the_overfitting(chance: float, overfit: float, expected: float) -> None:
    found = A.adjusted(chance, overfit, images=100, target=0.6, period=1000.0, most=0.8)
    assert found == pytest.approx(expected)


def test_the_controller_adapts_every_four_batches() -> None:
    controller = A.Controller(0.0, 0.6, 1000.0, 0.8)
    sure, unsure = torch.full((10,), 3.0), torch.full((10,), -1.0)
    chances = []
    for scores in [sure] * 3 + [unsure] + [sure] * 8 + [unsure] * 4:
        controller.follow(scores)
        chances.append(round(float(controller.chance), 6))
    # a mean sign of 1/2, twice of 1, of -1
    assert chances == [0.0] * 7 + [0.04] * 4 + [0.08] * 4 + [0.04]


def test_the_controller_resumes_from_its_state() -> None:
    one, other = (A.Controller(0.3, 0.6, 1000.0, 0.8) for _ in range(2))
    for _ in range(6):
        one.follow(torch.ones(8))
    other.load_state_dict(one.state_dict())
    for controller in (one, other):
        controller.follow(torch.ones(8))
        controller.follow(torch.ones(8))
    assert torch.equal(one.chance, other.chance) and float(one.chance) == pytest.approx(0.3 + 64 / 1000)


def test_several_processes_adapt_as_one_does(monkeypatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    controller = A.Controller(0.0, 0.6, 1000.0, 0.8)
    for _ in range(controller.every):
        controller.follow(torch.ones(5))
    assert float(controller.chance) == pytest.approx(4 * 5 * controller.every / 1000)
