"""Views of an image for self-supervised learning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from limner.networks.images import views


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "change", [views.viewpoint, views.light, views.colour, views.weather, views.occlude, views.mirror]
)
def test_a_view_is_a_similar_image(change, channels: int) -> None:
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


def test_crops_show_a_part_of_the_image() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 32).expand(200, 1, 32, 32)  # tells where a crop was taken
    small = views.crop(ramp, (16, 16), 0.25, 0.25, ratio=1.0)
    assert small.shape == (200, 1, 16, 16)
    span = small[:, 0, 0, -1] - small[:, 0, 0, 0]
    torch.testing.assert_close(span.mean(), torch.tensor(1.0), atol=0.1, rtol=0)  # half the side
    assert small[:, 0, 0, 0].min() < -0.8 and small[:, 0, 0, -1].max() > 0.8  # from everywhere
    whole = views.crop(ramp, (32, 32), 1.0, 1.0, ratio=1.0)
    torch.testing.assert_close(whole, ramp, atol=1e-5, rtol=0)


def test_rotation_keeps_angles_on_images_that_are_not_square() -> None:
    torch.manual_seed(0)
    at = torch.linspace(-1, 1, 64)
    ramp = at.expand(1, 1, 16, 64).clone()  # brighter to the right
    ramp = ramp.repeat(50, 1, 1, 1)
    turned = views.viewpoint(ramp, turn=15.0, zoom=0.0, shift=0.0, shear=0.0)[:, 0]
    across = (turned[:, 8, 33] - turned[:, 8, 31]) / 2
    down = (turned[:, 9, 32] - turned[:, 7, 32]) / 2
    angle = torch.atan2(down, across).abs() * 180 / math.pi  # which way it grows brighter, in pixels
    assert angle.max() < 15.5 and angle.max() > 12
