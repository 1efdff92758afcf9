"""Blur kernels of Real-ESRGAN."""

import math

import pytest
import torch
from torch.testing import assert_close

from limner.networks.images.blur import blurred, gaussian_kernel, plateau_kernel, sinc_kernel
from tests.helpers import golden


def test_golden():
    given, expected = golden("blur_kernels")
    gaussian = gaussian_kernel(given["size"], given["sigma_x"], given["sigma_y"], given["theta"])
    assert_close(gaussian, expected["anisotropic"], rtol=1e-9, atol=1e-9)
    assert_close(sinc_kernel(given["sinc_size"], given["cutoff"]), expected["sinc"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [gaussian_kernel, plateau_kernel])
def test_kernels_turn_with_their_angle(make):
    one, other = make(9, 2.0, 0.7, 0.4, 1.5), make(9, 0.7, 2.0, 0.4 + math.pi / 2, 1.5)
    assert_close(one, other)
    assert_close(one.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert_close(one, one.flip(0, 1))


def test_a_shape_of_1_is_a_gaussian_and_a_plateau_is_flatter():
    peak = gaussian_kernel(11, 2.0, 2.0)
    assert_close(gaussian_kernel(11, 2.0, 2.0, shape=1.0), peak)
    assert plateau_kernel(11, 2.0, 2.0, shape=2.0)[5, 6] / plateau_kernel(11, 2.0, 2.0, shape=2.0)[5, 5] > 0.9


def test_blurred_keeps_constants_and_mirrors_edges_of_any_picture():
    kernel = gaussian_kernel(7, 1.5, 1.0, 0.3)
    for size in ((1, 1), (2, 9), (16, 12)):
        assert_close(blurred(torch.ones(3, *size), kernel), torch.ones(3, *size))
    x = torch.zeros(1, 15, 15, dtype=torch.float64)
    x[0, 7, 7] = 1
    assert_close(blurred(x, kernel)[0, 4:11, 4:11], kernel)
    asymmetric = torch.zeros(3, 3, dtype=torch.float64)
    asymmetric[0, 0] = 1
    assert_close(blurred(x, asymmetric)[0].nonzero(), torch.tensor([[6, 6]]))
