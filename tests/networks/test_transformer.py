"""The patch transformer, its positions, the views, and the self-supervised losses, by known numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from limner.losses.distillation import centre_and_sharpen, self_distillation, sinkhorn
from limner.networks.attention import sincos
from limner.networks.images import views
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


def test_hidden_patches_are_not_looked_at() -> None:
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


def test_another_size_takes_resized_positions() -> None:
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


def test_taking_over_another_ones_weights() -> None:
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


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "change", [views.viewpoint, views.light, views.colour, views.weather, views.occlude, views.mirror]
)
def test_a_view_is_an_image_like_it(change, channels: int) -> None:
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(64, channels, 4, 4) * 2 - 1, (12, 10), mode="bilinear")
    image = views.premultiplied(image)
    changed = change(image)
    assert channels < 4 or (changed[:, :3] <= changed[:, 3:] + 1e-5).all(), (
        "no colour is brighter than its alpha"
    )
    assert changed.shape == image.shape and changed.isfinite().all() and changed.abs().max() <= 1 + 1e-5
    moved = (changed - image).abs().flatten(1).amax(1)
    if change is views.colour and channels == 1:
        assert not moved.any()
        return
    assert (moved > 0.01).float().mean() > 0.2, "a good share of the images look different"
    assert not torch.equal(change(image), changed), "each time in another way"
    alike = nn.functional.cosine_similarity(changed.flatten(1), image.flatten(1)).median()
    assert change is views.mirror or alike > 0.5, "but still much the same"


def test_crops_show_a_part() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 32).expand(200, 1, 32, 32)  # tells where a crop was taken
    small = views.crop(ramp, (16, 16), 0.25, 0.25, ratio=1.0)
    assert small.shape == (200, 1, 16, 16)
    span = small[:, 0, 0, -1] - small[:, 0, 0, 0]
    torch.testing.assert_close(span.mean(), torch.tensor(1.0), atol=0.1, rtol=0)  # half the side
    assert small[:, 0, 0, 0].min() < -0.8 and small[:, 0, 0, -1].max() > 0.8  # from everywhere
    whole = views.crop(ramp, (32, 32), 1.0, 1.0, ratio=1.0)
    torch.testing.assert_close(whole, ramp, atol=1e-5, rtol=0)


def test_maps_are_what_its_layers_make_of_each_patch() -> None:
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


def test_a_turn_keeps_its_angles_on_images_that_are_no_squares() -> None:
    torch.manual_seed(0)
    at = torch.linspace(-1, 1, 64)
    ramp = at.expand(1, 1, 16, 64).clone()  # brighter to the right
    ramp = ramp.repeat(50, 1, 1, 1)
    turned = views.viewpoint(ramp, turn=15.0, zoom=0.0, shift=0.0, shear=0.0)[:, 0]
    across = (turned[:, 8, 33] - turned[:, 8, 31]) / 2
    down = (turned[:, 9, 32] - turned[:, 7, 32]) / 2
    angle = torch.atan2(down, across).abs() * 180 / math.pi  # which way it grows brighter, in pixels
    assert angle.max() < 15.5 and angle.max() > 12


def test_sizes_that_would_fall_into_tiny_patches_are_refused() -> None:
    assert patch_size(PatchConfig(), (32, 32)) == 8 and patch_size(PatchConfig(), (36, 48)) == 6
    assert patch_size(PatchConfig(), (7, 9)) == 1, "of so small ones nothing is lost"
    for size in ((31, 31), (37, 53), (101, 101)):
        with pytest.raises(ValueError, match="do not divide"):
            patch_size(PatchConfig(), size)
