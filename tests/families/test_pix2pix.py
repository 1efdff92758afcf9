"""What only pix2pix promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from limner import families
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families.pix2pix import TINY, Pix2Pix
from limner.inference.tile_plan import plan
from limner.inference.tiles import Translator
from limner.networks.gans.patchgan import PixelGAN

SPEC = ImageSpec(3, 16, 16, given=ImageSpec(3, 16, 16))
UNET = dataclasses.replace(TINY, generator="unet", halvings=4)


def build(spec: ImageSpec = SPEC, **changes) -> Pix2Pix:
    torch.manual_seed(0)
    model = families.build("pix2pix", dataclasses.replace(TINY, **changes), spec)
    assert isinstance(model, Pix2Pix)
    return model


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True)


def test_losses_by_hand():
    """Both pictures are judged together; the discriminator's loss is halved, the generator's is not."""
    model = build()
    model.generator, model.discriminator = nn.Tanh(), Sum()  # type: ignore[assignment]
    given, wanted = (torch.rand(2, 3, 16, 16, dtype=torch.float64) for _ in range(2))
    batch, fake = Batch(wanted, Condition(2, image=given)), given.tanh()
    real_score, fake_score = (given.sum(1) + x.sum(1) for x in (wanted, fake))
    halved = 0.5 * (F.softplus(-real_score).mean() + F.softplus(fake_score).mean())
    assert_close(model.discriminator_loss(batch)["adversarial"], halved)
    terms = model.generator_loss(batch)
    assert_close(terms["adversarial"], F.softplus(-fake_score).mean())
    assert_close(terms["pixels"], 100 * (fake - wanted).abs().mean())


def test_least_squares_are_halved_once():
    """Isola 2017, 3.3: the discriminator's loss is the mean of both pictures', whichever loss it is."""
    model = build(loss="mse")
    model.generator, model.discriminator = nn.Tanh(), Sum()  # type: ignore[assignment]
    given, wanted = (torch.rand(2, 3, 16, 16) for _ in range(2))
    real, fake = (given.sum(1) + x.sum(1) for x in (wanted, given.tanh()))
    halved = 0.5 * ((real - 1).square().mean() + fake.square().mean())
    assert_close(model.discriminator_loss(Batch(wanted, Condition(2, image=given)))["adversarial"], halved)


@pytest.mark.parametrize("scale", [2, 3, 4, 6])
def test_tiles_of_smaller_given_pictures_lie_on_the_grid_of_the_generator(scale: int):
    model = build(ImageSpec(3, 8 * scale, 8 * scale, given=ImageSpec(3, 8, 8))).eval()
    assert model.scale * model.factor % model.generator.factor == 0
    translator = Translator(model, model.Sampling(), 10**10)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 44, 3)).astype(np.uint8)
    margin = model.margin(None)
    tiles = plan(40, 44, model.factor, margin, 1500)
    assert margin is not None and len(tiles) > 1
    untiled = translator(pixels)
    with translator.statistics_of(pixels):
        assert np.abs(translator.in_tiles(pixels, tiles).astype(int) - untiled).max() <= 1


@pytest.mark.parametrize("generator", ["resnet", "unet"])
def test_colours_stay_below_their_alpha(generator: str):
    model = build(ImageSpec(4, 16, 16, given=ImageSpec(3, 16, 16)), generator=generator, halvings=4).eval()
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    made = model.translate(image, Condition(2), model.Sampling(), Draws([0, 1]))
    assert (made[:, :3] <= made[:, 3:]).all()


def test_the_unet_draws_with_dropout_of_each_pictures_own_stream():
    model = build(ImageSpec(3, 64, 64, given=ImageSpec(3, 64, 64)), generator="unet", halvings=6).eval()
    image = torch.rand(2, 3, 64, 64)

    def draw(rows: slice, seeds: list[int]) -> Tensor:
        with torch.no_grad():
            return model.translate(image[rows], Condition(len(seeds)), model.Sampling(), Draws(seeds))

    both = draw(slice(0, 2), [5, 6])
    assert_close(draw(slice(1, 2), [6])[0], both[1])
    assert not torch.equal(draw(slice(0, 1), [7])[0], both[0])


def test_the_unet_sees_pictures_of_its_own_size_unpadded():
    """As published: 256 pixels a side come down to one."""
    model = build(generator="unet", halvings=8).eval()
    sizes = []
    model.generator.down[-1].register_forward_hook(lambda module, given, made: sizes.append(made.shape[2:]))
    translator = Translator(model, model.Sampling(), 10**10)
    for side in (256, 257):
        translator(np.zeros((side, 256, 3), np.uint8))
    assert sizes[-2:] == [(1, 1), (2, 1)] and {*sizes[:-2]} == {(1, 1), (2, 2)}


def test_how_far_its_generators_see():
    assert build().margin(None) == 20 and build(generator="unet", halvings=4).margin(None) is None
    assert build(ImageSpec(3, 32, 32, given=ImageSpec(3, 16, 16))).margin(None) == 12


@pytest.mark.parametrize("config", [TINY, UNET])
@pytest.mark.parametrize("size", [(1, 1), (9, 30)])
def test_pictures_of_any_size_and_other_channels(config, size: tuple[int, int]):
    spec = ImageSpec(4, 32, 32, given=ImageSpec(1, 16, 16))
    model = families.build("pix2pix", config, spec).eval()
    assert isinstance(model, Pix2Pix)
    made = model.translate(torch.rand(1, 1, *size), Condition(1), model.Sampling(), Draws([0]))
    assert made.shape == (1, 4, 2 * size[0], 2 * size[1]) and made.abs().max() <= 1


def test_the_discriminator_of_single_pixels():
    assert isinstance(build(discriminator="pixel").discriminator, PixelGAN)


def test_small_pictures_are_refused():
    with pytest.raises(LimnerError, match="pix2pix needs images of at least 8x8 pixels, not 4x16"):
        build(ImageSpec(3, 4, 16, given=ImageSpec(3, 4, 16)))
