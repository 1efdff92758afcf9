"""What families make of a wanted picture."""

import typing

import pytest
import torch
from torch.testing import assert_close

from limner.core import Draws
from limner.families import _degrade
from limner.families._degrade import Degradation, degrade, given_channels
from limner.networks.images.bicubic import bicubic

KINDS = typing.get_args(Degradation)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_is_degraded_alike_alone_and_in_a_batch(kind, channels):
    colours = torch.rand(3, channels, 24, 32)
    colours[:, :3] *= colours[:, -1:] if channels == 4 else 1
    image, scale = 2 * colours - 1, 4 if kind in ("bicubic", "real") else 1
    made = degrade(image, kind, Draws([5, 6, 7]), scale)
    assert made.shape == (3, given_channels(kind, channels), 24 // scale, 32 // scale)
    assert made.abs().max() <= 1
    assert_close(degrade(image[1:2], kind, Draws([6]), scale), made[1:2], rtol=0, atol=1e-6)
    if channels == 4:
        assert (made[:, :3] <= made[:, 3:]).all()
    if kind not in ("bicubic", "bicubic4", "grey"):
        assert not torch.equal(degrade(image, kind, Draws([8, 9, 10]), scale), made)


def test_bicubic_is_the_kernel_that_figures_are_measured_by():
    image = torch.rand(1, 3, 32, 16) - 0.5
    assert_close(degrade(image, "bicubic", Draws([0]), 4), bicubic(image, 0.25).clamp(-1, 1))


@pytest.mark.parametrize("size", [(32, 32), (33, 30), (5, 9)])
def test_enlarged_again_a_picture_stays_in_its_place(size):
    """A slope comes back as it is, away from the edges, whatever the sides."""
    image = torch.linspace(-0.9, 0.9, 40)[None, None, None, : size[1]].expand(1, 1, *size)
    made = degrade(image, "bicubic4", Draws([0]))
    inner = slice(8, size[1] - 12)
    assert made.shape == image.shape
    assert_close(made[..., inner], image[..., inner], atol=1e-4, rtol=0)


def test_grey_is_the_luminance():
    image = torch.tensor([1.0, -1.0, 0.5])[None, :, None, None].expand(1, 3, 8, 8)
    assert_close(degrade(image, "grey", Draws([0])), torch.full((1, 1, 8, 8), 0.299 - 0.587 + 0.057))


def test_holes_leave_the_rest_as_it_is():
    image = torch.full((1, 3, 40, 40), 0.7)
    made = degrade(image, "holes", Draws([3]))
    hidden = (made == 0).all(1)
    assert 0.04 <= hidden.float().mean() <= 1 and (made[0, :, ~hidden[0]] == 0.7).all()


@pytest.mark.parametrize("size", [(1, 1), (4, 60), (33, 17)])
def test_real_takes_any_size(size):
    made = degrade(torch.rand(6, 3, *size), "real", Draws(range(6)), 1)
    assert made.shape == (6, 3, *size) and made.isfinite().all()


def test_kernels_of_all_kinds_are_drawn():
    g = torch.Generator().manual_seed(0)
    kernels = [_degrade.random_kernel(g, (0.2, 3.0)) for _ in range(200)]
    assert {len(kernel) for kernel in kernels} == set(_degrade.SIDES)
    assert all(abs(float(kernel.sum()) - 1) < 1e-9 for kernel in kernels)
    ringing = sum(bool((kernel < -1e-4).any()) for kernel in kernels)
    assert 5 < ringing < 40


def test_compression_keeps_alpha_and_hardly_changes_at_high_quality():
    image = torch.linspace(0, 1, 32).expand(4, 32, 32)
    high, low = (_degrade.compressed(image, quality) for quality in (95, 5))
    assert torch.equal(high[3], image[3])
    assert (high - image).abs().mean() < 0.01 < (low - image).abs().mean()
