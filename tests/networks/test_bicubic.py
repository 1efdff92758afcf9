"""Bicubic resizing as MATLAB's imresize."""

import pytest
import torch
from torch.testing import assert_close

from limner.networks.images import bicubic as module
from limner.networks.images.bicubic import bicubic, bicubic_to, keys_kernel
from tests.helpers import golden


def test_golden():
    given, expected = golden("imresize_bicubic")
    x = given["x"][None, None]
    assert_close(bicubic(x, 0.25)[0, 0], expected["down4"])
    assert_close(bicubic_to(x, (2, 3))[0, 0], expected["down4"])
    assert_close(bicubic(x[..., :2, :3], 4.0)[0, 0], expected["up4_of_upper_left_2x3"])
    places = torch.arange(-10, 10, dtype=torch.float64) + 0.5
    assert_close(keys_kernel(places / 4) / 4, expected["weights_inside"])


@pytest.mark.parametrize("scale", [0.25, 0.3, 1 / 3, 1.0, 1.7, 4.0])
def test_constants_stay_and_each_axis_is_alike(scale):
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    assert_close(bicubic(torch.ones_like(x), scale), torch.ones_like(bicubic(x, scale)))
    assert_close(bicubic(x.mT, scale), bicubic(x, scale).mT)
    size = tuple(bicubic(x, scale).shape[-2:])
    assert_close(bicubic_to(x.flip(-1), size), bicubic_to(x, size).flip(-1))
    if scale == 1.0:
        assert_close(bicubic(x, scale), x)


def test_bands_join_without_a_seam(monkeypatch):
    x = torch.rand(1, 1, 50, 70, dtype=torch.float64)
    whole = bicubic(x, 2.5)
    monkeypatch.setattr(module, "BAND", 16)
    module._bands.cache_clear()
    assert_close(bicubic(x, 2.5), whole)
    module._bands.cache_clear()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_sides_shorter_than_the_kernel(size):
    x = torch.rand(1, 1, *size, dtype=torch.float64)
    assert bicubic(x, 4.0).shape == (1, 1, 4 * size[0], 4 * size[1])
    assert bicubic_to(x, (1, 1)).isfinite().all()
