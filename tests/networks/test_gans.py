"""Layers of GANs and resampling, against numbers of public implementations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limner.networks.gans.equalised import EqualConv2d, EqualLinear, leaky_relu, minibatch_stddev, pixel_norm
from limner.networks.images.resample import downsample2d, kernel, resample2d, upfirdn2d, upsample2d
from tests.helpers import golden


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-9)


def test_resampling_by_the_golden_filter() -> None:
    given, expected = golden("upfirdn2d_1331")
    taps = kernel(given["filter"].tolist(), like=given["x"])
    close(taps, expected["filter2d_taps"])

    def filter2d(x: Tensor, taps: Tensor) -> Tensor:
        n = len(taps)
        return resample2d(x, taps, pad=(n // 2, (n - 1) // 2, n // 2, (n - 1) // 2))

    for name, function in (
        ("upsample2d", upsample2d),
        ("downsample2d", downsample2d),
        ("filter2d", filter2d),
    ):
        close(function(given["x"], taps), expected[name])


def test_minibatch_deviation_has_strided_groups_and_biased_variance() -> None:
    given, expected = golden("minibatch_stddev")
    found = minibatch_stddev(given["x"], int(given["group_size"]))
    close(found[:, :-1], given["x"])
    for i in range(len(found)):
        close(found[i, -1], expected["stat_per_sample"][i].expand_as(found[i, -1]))
    for size in (1, 2, 3, 5, 7):  # any batch, also one that does not divide
        assert minibatch_stddev(given["x"][:size], 4).isfinite().all()


def test_pixel_norm() -> None:
    given, expected = golden("pixel_norm")
    close(pixel_norm(given["x"]), expected["y"])


@pytest.mark.parametrize(
    ("name", "rate", "bends"), [("lrelu_lrmul0p01", 0.01, True), ("linear_lrmul1", 1.0, False)]
)
def test_equalised_linear(name: str, rate: float, bends: bool) -> None:
    given, expected = golden("stylegan2_fc")
    layer = EqualLinear(*given["weight"].shape[::-1], lr_multiplier=rate).double()
    layer.weight.data, layer.bias.data = given["weight"], given["bias"]  # type: ignore[union-attr]
    found = layer(given["x"])
    close(leaky_relu(found) if bends else found, expected[name])


def conv(given: dict[str, Tensor], gain: float) -> EqualConv2d:
    outputs, inputs, size, _ = given["weight"].shape
    layer = EqualConv2d(inputs, outputs, size, gain=gain).double()
    layer.weight.data, layer.bias.data = given["weight"], given["bias"]  # type: ignore[union-attr]
    return layer


def test_equalised_convolution_of_stylegan2_and_of_progan() -> None:
    given, expected = golden("stylegan2_conv2dlayer")
    close(leaky_relu(conv(given, 1.0)(given["x"])), expected["y"])
    given, expected = golden("progan_eq_conv")
    found = conv(given, 2**0.5)(given["x"])
    close(found, expected["conv"])
    close(pixel_norm(leaky_relu(found, 1.0)), expected["act_pn"])


@pytest.mark.parametrize(
    "how", [{"up": 2, "pad": (2, 1, 2, 1), "gain": 4.0}, {"down": 2}, {"pad": (2, 2, 0, 3)}]
)
def test_matrices_filter_as_the_convolution_does(how: dict) -> None:
    """The small way, taken on a CPU, and the general one; and their gradients."""
    x = torch.randn(2, 3, 12, 9, dtype=torch.float64).to(memory_format=torch.channels_last)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = resample2d(one, kernel(like=x), **how)
    expected = upfirdn2d(other, kernel(like=x), **how)
    close(found, expected.detach())
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    close(one.grad, other.grad)
