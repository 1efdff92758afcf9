"""What only bridges promise."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from limner import families
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError, given_pictures
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
    words = "name two sources, the given pictures first, or say .* with --model.degrade, such as blur"
    with pytest.raises(LimnerError, match=words):
        families.build("bridge", TINY, ImageSpec(3, 16, 16))
    with pytest.raises(LimnerError, match=words):
        given_pictures(build(), Batch(torch.rand(1, 3, 16, 16), Condition(1)))


# ---- made of the wanted picture

KINDS = ("grey", "blur", "jpeg", "holes", "bicubic4", "real")
ALONE = ImageSpec(3, 32, 32)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_given_pictures_that_it_makes_itself(kind: str, channels: int):
    spec = dataclasses.replace(ALONE, channels=channels)
    model, image = build(spec, degrade=kind), torch.rand(2, channels, 32, 32) * 2 - 1
    if channels == 4:  # premultiplied
        image[:, :3] = torch.minimum(image[:, :3], image[:, 3:])
    given = model.degrade(image, Draws([1, 2]))
    assert given.shape[-2:] == (32, 32) and given.abs().max() <= 1
    assert_close(model.degrade(image[1:], Draws([2])), given[1:])
    assert model.loss(Batch(image, Condition(2)))["wanted"].isfinite()
    made = translate(model, given, (1, 2))
    assert made.shape == image.shape
    assert "given" in model.follows and model.restores == (kind != "grey")


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_keep_their_grey_exactly(channels: int):
    """To a rounding of 8 bits, wherever the network wants to go."""
    model = build(dataclasses.replace(ALONE, channels=channels), degrade="grey")
    image = (torch.rand(4, channels, 32, 32) * 255).round() * 2 / 255 - 1
    image[:, :3] = torch.minimum(image[:, :3], image[:, 3:]) if channels == 4 else image
    given = model.degrade(image, Draws(range(4)))
    for wild in (torch.randn_like(image) * 3, image, torch.zeros_like(image)):
        made = model.finish(wild, given)
        assert made.min() >= -1 - 1e-6 and made.max() <= 1 + 1e-6
        assert_close(model.degrade(made, Draws(range(4))), given, atol=1e-5, rtol=0)
        saved = ((made + 1) * 127.5).round() / 127.5 - 1
        assert (model.degrade(saved, Draws(range(4))) - given).abs().max() <= 2 / 255
    assert_close(model.finish(image, given), image, atol=1e-5, rtol=0)  # colours in range stay


@pytest.mark.parametrize("channels", [3, 4])
def test_a_coloured_picture_is_coloured_again_from_its_grey(channels: int):
    model = build(dataclasses.replace(ALONE, channels=channels), degrade="grey")
    image = torch.rand(1, channels, 32, 32) * 2 - 1
    image[:, :3] = torch.minimum(image[:, :3], image[:, 3:]) if channels == 4 else image
    grey = model.degrade(image, Draws([0]))
    assert_close(translate(model, image), translate(model, grey))


def test_pairs_and_pictures_that_it_makes_exclude_each_other():
    model, given = build(), torch.rand(1, 3, 16, 16)
    assert not model.restores and model.scale == 1
    assert given_pictures(model, Batch(given + 1, Condition(1, image=given))) is given
    with pytest.raises(
        LimnerError, match=r"--model.degrade blur .*, and the data gives some too: leave it out"
    ):
        build(degrade="blur")


def test_colours_stay_below_their_alpha():
    model = build(ImageSpec(4, 16, 16, given=ImageSpec(4, 16, 16)))
    made = translate(model, torch.rand(2, 4, 16, 16) * 2 - 1, (1, 2))
    assert (made[:, :3] <= made[:, 3:]).all() and made.std() > 0.1


def test_float64_stays():
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64) * 2 - 1
    model = build().double()
    made = model.network(image, image, torch.zeros(1, dtype=torch.float64))
    assert made.dtype == torch.float64 and (made - made.float()).abs().max() > 0
