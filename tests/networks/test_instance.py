"""Norms over a whole picture: goldens, one pixel, and statistics that come from elsewhere."""

import pytest
import torch
from torch import nn

from limner.networks.images.padding import pad_reflected
from limner.networks.instance import GroupNorm, InstanceNorm, moments, statistics_from
from tests.helpers import golden


def test_equals_the_golden_in_training_and_in_evaluation():
    inputs, expected = golden("instance_norm_affine")
    plain = InstanceNorm(2, eps=inputs["eps"]).double()
    affine = InstanceNorm(2, affine=True, eps=inputs["eps"]).double()
    affine.load_state_dict({"weight": inputs["gamma"], "bias": inputs["beta"]})
    for training in (True, False):
        for norm, right in ((plain, expected["plain"]), (affine, expected["affine"])):
            torch.testing.assert_close(norm.train(training)(inputs["x"]), right, rtol=1e-9, atol=1e-9)
    given = inputs["gamma"].expand(2, -1), inputs["beta"].expand(2, -1)
    torch.testing.assert_close(plain(inputs["x"], *given), expected["affine"], rtol=1e-9, atol=1e-9)
    assert not list(plain.parameters()) and not plain.state_dict()


def test_statistics_of_float64_are_of_float64():
    assert {value.dtype for value in moments(torch.rand(2, 4, 3, 3).double(), 4)} == {torch.float64}


def test_a_single_pixel_becomes_0():
    norm = InstanceNorm(3)
    for mode in (norm.train(), norm.eval()):
        assert torch.equal(mode(torch.randn(1, 3, 1, 1)), torch.zeros(1, 3, 1, 1))


@pytest.mark.parametrize("norm", [InstanceNorm(4), InstanceNorm(4, affine=True), GroupNorm(2, 4)])
def test_parts_of_a_picture_equal_the_whole_by_its_statistics(norm: GroupNorm):
    generator = torch.Generator().manual_seed(0)
    for weight in norm.parameters():
        nn.init.normal_(weight, generator=generator)
    x = 3 + 2 * torch.randn(2, 4, 6, 9, generator=generator)
    gain, shift = torch.randn(2, 2, 4, generator=generator)
    for condition in ((), (gain,), (gain, shift)):
        whole = norm(x, *condition)
        known = moments(x, norm.num_groups)
        with statistics_from(nn.Sequential(norm), lambda part, groups, known=known: known):
            parts = [norm(part, *condition) for part in x.split(4, dim=3)]
        torch.testing.assert_close(torch.cat(parts, 3), whole, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(norm(x[..., :4], *condition), whole[..., :4], atol=0.1)


@pytest.mark.parametrize(
    ("side", "multiple", "wanted"), [(1, 1, 2), (1, 4, 8), (3, 4, 8), (8, 4, 8), (13, 8, 16)]
)
def test_padding_reflects_whatever_the_size(side: int, multiple: int, wanted: int):
    x = torch.arange(side).float().expand(2, 1, 5 * multiple, side)
    y = pad_reflected(x, multiple)
    assert y.shape == (2, 1, 5 * multiple, wanted)
    up_and_down = [*range(side), *range(side - 2, 0, -1)] or [0]
    assert y[0, 0, 0].tolist() == [up_and_down[i % len(up_and_down)] for i in range(wanted)]
    if side > wanted - side:
        assert torch.equal(y, torch.nn.functional.pad(x, (0, wanted - side, 0, 0), mode="reflect"))


@pytest.mark.parametrize("size", [8, 24])
@pytest.mark.parametrize("grows", [False, True])
def test_the_quick_ways_of_a_cpu_give_what_the_plain_one_does(size: int, grows: bool):
    torch.manual_seed(0)
    norm, x = InstanceNorm(6, affine=True), torch.rand(2, 6, size, size)
    expected = torch.group_norm(x, 6, norm.weight, norm.bias, norm.eps)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = norm(x.to(memory_format=layout).requires_grad_(grows))
        assert y.is_contiguous(memory_format=layout) and y.dtype == x.dtype
        torch.testing.assert_close(y, expected)
        rough = norm(x.bfloat16().to(memory_format=layout).requires_grad_(grows))
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("norm", [InstanceNorm(4), GroupNorm(2, 4)])
def test_parts_of_nearly_constant_maps_equal_the_whole(norm: GroupNorm):
    x = 5 + 1e-4 * torch.randn(1, 4, 64, 96)
    known = moments(x, norm.num_groups)
    with statistics_from(nn.Sequential(norm), lambda part, groups: known):
        parts = [norm(part) for part in x.split(32, dim=3)]
    torch.testing.assert_close(torch.cat(parts, 3), norm(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("contrast", [0.0, 1e-3, 1e-2])
def test_nearly_constant_maps_are_normalised_exactly(groups: int, contrast: float):
    """PyTorch's own statistics in channels_last are wrong there by more than the result."""
    level = 5 + torch.rand(1, groups, 1, 1).repeat_interleave(8 // groups, 1)
    x = level + contrast * torch.randn(1, 8, 64, 64)
    x[..., 0, 0] += 300 * contrast  # a pixel that is far from all others
    norm = GroupNorm(groups, 8, affine=False)
    found = norm(x.contiguous(memory_format=torch.channels_last))
    wanted = torch.nn.functional.group_norm(x.double(), groups)
    assert (found - wanted).abs().max() < 1e-3
