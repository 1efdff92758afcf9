"""What only bridges promise."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from limner import families
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families.bridge import TINY, Bridge, BridgeConfig, BridgeSampling

SPEC = ImageSpec(3, 16, 16, given=ImageSpec(3, 16, 16))


def build(spec: ImageSpec = SPEC, **changes) -> Bridge:
    torch.manual_seed(0)
    model = families.build("bridge", dataclasses.replace(TINY, **changes), spec)
    for p in model.network.unet.head.parameters():
        torch.nn.init.normal_(p, 0.0, 0.05)
    return model.eval()


def translate(model: Bridge, image: Tensor, seeds=(0,), **sampling) -> Tensor:
    with torch.no_grad():
        return model.translate(image, Condition(len(image)), BridgeSampling(**sampling), Draws(seeds))


def test_it_begins_as_the_given_picture():
    model = families.build("bridge", BridgeConfig(), SPEC)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert_close(translate(model.eval(), image), image)


def test_one_call_is_the_guess_at_the_given_picture_and_has_one_answer():
    model, image = build(), torch.rand(2, 3, 16, 16) * 2 - 1
    guess = model.network(image, image, torch.zeros(2)).clamp(-1, 1)
    for path in ("straight", "i2sb"):
        made = translate(build(path=path), image, (1, 2))
        assert_close(made, guess)
        assert_close(translate(build(path=path), image, (3, 4)), made)


def test_several_calls_draw_by_the_noise_and_without_it_not():
    model, image = build(sigma=0.5), torch.rand(1, 3, 16, 16) * 2 - 1
    one, other = (translate(model, image, (seed,), steps=4) for seed in (1, 2))
    assert (one - other).abs().max() > 0.01
    for sampling in ({"eta": 0.0}, {"solver": "heun"}, {"solver": "unipc"}, {"solver": "dpm2m"}):
        one, other = (translate(model, image, (seed,), steps=4, **sampling) for seed in (1, 2))
        assert_close(one, other)
    still = build(sigma=0.0)
    assert_close(
        translate(still, image, (1,), steps=4), translate(still, image, (2,), steps=4, solver="euler")
    )


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (33, 18)])
@pytest.mark.parametrize("steps", [1, 3])
def test_pictures_of_any_size(size: tuple[int, int], steps: int):
    made = translate(build(), torch.rand(1, 3, *size) * 2 - 1, steps=steps)
    assert made.shape == (1, 3, *size) and made.isfinite().all() and made.abs().max() <= 1


@pytest.mark.parametrize(("given", "channels"), [(1, 3), (3, 1), (3, 4), (4, 3), (1, 4)])
def test_given_pictures_of_other_channels(given: int, channels: int):
    model = build(ImageSpec(channels, 16, 16, given=ImageSpec(given, 16, 16)))
    assert translate(model, torch.rand(1, given, 24, 16) * 2 - 1).shape == (1, channels, 24, 16)


def test_given_pictures_that_are_smaller():
    model = build(ImageSpec(3, 32, 16, given=ImageSpec(3, 16, 8)))
    assert model.scale == 2 and (2 * model.factor) % model.network.unet.multiple == 0
    assert translate(model, torch.rand(1, 3, 6, 10) * 2 - 1).shape == (1, 3, 12, 20)
    for given in (ImageSpec(3, 12, 8), ImageSpec(3, 16, 16)):
        with pytest.raises(LimnerError, match="a whole number of times as large"):
            families.build("bridge", TINY, ImageSpec(3, 32, 16, given=given))


def test_the_loss_is_that_of_the_wanted_picture_over_what_is_left():
    """With all times at the start, it is the mean squared error of the first guess."""
    model = build(start=1.0)
    given, wanted = (torch.rand(4, 3, 16, 16) * 2 - 1 for _ in range(2))
    loss = model.loss(Batch(wanted, Condition(4, image=given)))["wanted"]
    assert_close(loss, (model.network(given, given, torch.zeros(4)) - wanted).square().mean())


def test_calls_reach_one_after_another():
    model = build()
    once = model.margin(BridgeSampling())
    assert once == model.network.unet.margin
    assert model.margin(BridgeSampling(steps=3)) == 3 * once
    assert model.margin(BridgeSampling(steps=3, solver="heun")) == 6 * once


def test_without_given_pictures_it_says_what_to_name():
    with pytest.raises(LimnerError, match="name two sources, the given pictures first"):
        families.build("bridge", TINY, ImageSpec(3, 16, 16))
