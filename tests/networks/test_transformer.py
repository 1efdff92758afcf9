"""The patch transformer and its positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limner.networks.attention import sincos
from limner.networks.transformers.patch import PatchConfig, PatchTransformer, patch_size

SMALL = PatchConfig(patch=4, width=16, depth=2, heads=2)


def test_fixed_positions_are_the_published_ones() -> None:
    table = sincos(8, (3, 3))  # sines of the column first, then of the row
    a, b = math.sin(1), math.sin(0.01)
    assert table.dtype == torch.float64 and table.shape == (9, 8)
    torch.testing.assert_close(
        table[1], torch.tensor([a, b, math.cos(1), math.cos(0.01), 0, 0, 1, 1], dtype=torch.float64)
    )
    torch.testing.assert_close(table[3], torch.cat([table[1][4:], table[1][:4]]))
    torch.testing.assert_close(table[8][:4], table[2][:4])
    torch.testing.assert_close(table[8][4:], table[2][:4])


def test_hidden_patches_do_not_matter() -> None:
    body = PatchTransformer(SMALL, 3, (8, 8))
    image, keep = torch.randn(2, 3, 8, 8), torch.tensor([[0, 3], [1, 2]])
    seen = body(image, keep)
    other = image.clone()
    other[0, :, :4, 4:] = 7.0  # patch 1 of the first image is hidden
    other[1, :, :4, :4] = 7.0  # and patch 0 of the second
    assert seen.shape == (2, 3, 16) and torch.equal(body(other, keep), seen)
    torch.testing.assert_close(body(image, torch.tensor([[3, 0], [2, 1]]))[:, 0], seen[:, 0])
    everything = torch.arange(4).expand(2, -1)
    torch.testing.assert_close(body(image, everything), body(image))


def test_positions_are_resized_to_another_image_size() -> None:
    body = PatchTransformer(SMALL, 1, (16, 16))
    with torch.no_grad():
        body.position.copy_(
            torch.linspace(0, 1, 4).repeat(4)[None, :, None].expand(1, 16, 16).new_zeros(1, 17, 16)
        )
        body.position[:, 1:] = torch.linspace(0, 1, 4).repeat(4)[None, :, None]  # rises from left to right
    table = body.positions((6, 8))[0, 1:, 0].unflatten(0, (6, 8))
    assert body(torch.randn(2, 1, 24, 32)).shape == (2, 49, 16)
    assert (table.diff(dim=1) > 0).all() and table.diff(dim=0).abs().max() < 1e-6
    fixed = PatchTransformer(SMALL, 1, (16, 16), positions="sincos")
    torch.testing.assert_close(fixed.positions((6, 8))[0, 1:].double(), sincos(16, (6, 8)), atol=1e-6, rtol=0)


def test_weights_are_loaded_with_resized_positions() -> None:
    torch.manual_seed(0)
    one, other = PatchTransformer(SMALL, 1, (16, 16)), PatchTransformer(SMALL, 1, (16, 16))
    larger = PatchTransformer(SMALL, 1, (24, 24))
    image = torch.randn(2, 1, 16, 16)
    assert not torch.allclose(one(image), other(image))
    other.load_resized(one)
    assert torch.equal(one(image), other(image))
    larger.load_resized(one)
    image = torch.randn(2, 1, 24, 24)
    torch.testing.assert_close(larger(image), one(image))
    with pytest.raises(ValueError, match="patches of 1 x 4 x 4, not of 3 x 4 x 4"):
        PatchTransformer(SMALL, 3, (16, 16)).load_resized(one)


def test_stochastic_depth_keeps_the_mean() -> None:
    from limner.networks.transformers.patch import Layer

    torch.manual_seed(0)
    layer = Layer(8, 2, drop_path=0.5)
    kept = layer._drop_path(torch.ones(10_000, 3, 8))
    assert set(kept.unique().tolist()) == {0.0, 2.0} and kept.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()._drop_path(kept), kept)


def test_feature_maps_are_the_layers_normalised_patches() -> None:
    torch.manual_seed(0)
    body = PatchTransformer(PatchConfig(patch=4, width=8, depth=6, heads=2), 1, (8, 12))
    image = torch.randn(3, 1, 8, 12)
    maps = body.feature_maps(image)
    assert [m.shape for m in maps] == [(3, 8, 2, 3)] * 3
    body.norm = nn.LayerNorm(8, elementwise_affine=False)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), body(image)[:, 1:])
    assert (
        len(PatchTransformer(PatchConfig(patch=4, width=8, depth=1, heads=2), 1, (8, 12)).feature_maps(image))
        == 1
    )


def test_sizes_that_need_tiny_patches_are_refused() -> None:
    assert patch_size(PatchConfig(), (32, 32)) == 8 and patch_size(PatchConfig(), (36, 48)) == 6
    assert patch_size(PatchConfig(), (7, 9)) == 1, "of so small ones nothing is lost"
    for size in ((31, 31), (37, 53), (101, 101)):
        with pytest.raises(ValueError, match="do not divide"):
            patch_size(PatchConfig(), size)


def test_positions_are_resized_as_dinos() -> None:
    """Sampled where DINO's code does: the scale is (side + 0.1) / own side, and nothing is antialiased."""
    net = PatchTransformer(PatchConfig(patch=4, width=8, depth=1, heads=2, plain_resize=True), 1, (56, 56))
    torch.nn.init.normal_(net.position)
    found = net.positions((6, 6))
    table = net.position[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    wanted = (
        F.interpolate(table, scale_factor=(6.1 / 14, 6.1 / 14), mode="bicubic").flatten(2).transpose(1, 2)
    )
    assert found.shape == (1, 37, 8)
    torch.testing.assert_close(found[:, 1:], wanted)
    smooth = F.interpolate(table, (6, 6), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    assert (found[:, 1:] - smooth).abs().max() > 0.1
