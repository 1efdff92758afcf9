"""Super-resolution with detail that looks real."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.testing import assert_close

import limner
from limner import families
from limner.core import Batch, Condition, ImageSpec
from limner.families._upscaling import UpscalerConfig
from limner.families.srgan import SRGAN, SRGANConfig
from limner.losses.perceptual import feature_maps, perceptual_distance
from limner.networks.restoration.srgan import SRResNet
from limner.networks.vgg import VGG
from limner.settings import LimnerError
from tests.helpers import paint

TINY = SRGAN.presets["tiny"].model


def model(size=(16, 16), **changes):
    torch.manual_seed(0)
    return families.build("srgan", replace(TINY, **changes), ImageSpec(3, *size))


def batch(size=(16, 16)):
    return Batch(torch.rand(4, 3, *size) * 2 - 1, Condition(4))


def test_the_terms_of_the_losses():
    one, shown = model(pixel=0.5, adversarial=0.01).eval(), batch()
    given = F.interpolate(shown.image, scale_factor=0.5)
    shown = Batch(shown.image, Condition(4, image=given))
    drawn = one.generator(given)
    terms = one.generator_loss(shown)
    maps = [feature_maps("random", x) for x in (drawn, shown.image)]
    assert_close(terms["adversarial"], 0.01 * F.softplus(-one.discriminator(drawn)).mean())
    assert_close(terms["pixels"], 0.5 * (drawn - shown.image).abs().mean())
    assert_close(terms["perceptual"], perceptual_distance(*maps).mean())
    real, fake = one.discriminator(shown.image), one.discriminator(drawn)
    wanted = F.softplus(-real).mean() + F.softplus(fake).mean()
    assert_close(one.discriminator_loss(shown)["adversarial"], wanted)


def test_the_relativistic_losses_compare_each_drawn_picture_with_its_true_one():
    settings = {"relativistic": True, "penalty": 2.0, "discriminator_kind": "patch", "perceptual": 0.0}
    one, shown = model(**settings, adversarial=0.01).eval(), batch()
    drawn = one.generator(one.degrade(shown.image, None)).detach()
    real, fake = one.discriminator(shown.image), one.discriminator(drawn)
    assert real.shape[2:] != (1, 1), "it scores patches"
    assert_close(one.generator_loss(shown)["adversarial"], 0.01 * F.softplus(real - fake).mean())
    terms = one.discriminator_loss(shown)
    assert_close(terms["adversarial"], F.softplus(fake - real).mean())
    slopes = 0
    for pictures in (shown.image, drawn):
        pictures.requires_grad_()
        (slope,) = torch.autograd.grad(one.discriminator(pictures).mean((1, 2, 3)).sum(), pictures)
        slopes += slope.square().sum() / len(pictures)
    assert_close(terms["penalty"], slopes)  # gamma / 2 is 1


def test_features_of_vgg_are_divided_as_published(tmp_path):
    torch.manual_seed(0)
    network = VGG(16, ("relu1_2",))
    save_file(network.state_dict(), tmp_path / "vgg.safetensors")
    named = {"perceptual_network": str(tmp_path / "vgg.safetensors"), "perceptual_layers": ("relu1_2",)}
    one, shown = model(**named).eval(), batch()
    drawn, wanted = one.generator(one.degrade(shown.image, None)), shown.image
    error = (network(drawn)[0] / 12.75 - network(wanted)[0] / 12.75).square().mean()
    assert_close(one.generator_loss(shown)["perceptual"], error)
    with pytest.raises(LimnerError, match="VGG-16 has no layer relu5_4"):
        model(perceptual_network=named["perceptual_network"]).objectives()
    with pytest.raises(LimnerError, match="The network of features none is no file"):
        model(perceptual_network="none").objectives()


def test_held_out_losses_see_the_middle():
    one, shown = model((32, 40)).eval(), batch((32, 40))
    given, wanted = one.seen_pair(shown)
    assert wanted.shape == (4, 3, 16, 16) and given.shape == (4, 3, 8, 8)
    assert torch.equal(wanted, shown.image[..., 8:24, 12:28])
    assert torch.equal(given, one.degrade(shown.image, None)[..., 4:12, 6:14])


def test_generator_and_scale_by_name():
    config = SRGANConfig(generator="span", scale=2)
    assert (config.upscaler.network, config.upscaler.scale) == ("span", 2)
    assert SRGANConfig().upscaler == UpscalerConfig(network="srresnet", error="squared")
    assert isinstance(model(generator="srresnet").generator.body, SRResNet)


@pytest.mark.parametrize(
    "side, scale, counts", [(96, 2, (1_401_749, 23_565_505)), (128, 8, (1_697_175, 38_245_569))]
)
def test_published_sizes(side, scale, counts):
    with torch.device("meta"):
        one = families.build("srgan", SRGANConfig(scale=scale, crop=side), ImageSpec(3, 256, 256))
    assert tuple(sum(p.numel() for p in part.parameters()) for part in one.children()) == counts


def train(folder, out, **model):
    settings = {"training": {"batch": 4, "samples": 0, "precision": "float32"}, "quiet": True}
    return limner.train("srgan", folder, out, preset="tiny", budget="8img", model=model, **settings)


def test_pixels_come_first_and_remain_a_run_of_their_own(tmp_path):
    paint(tmp_path / "in", 12, (16, 16))
    train(tmp_path / "in", tmp_path / "run")
    first, second = limner.load(tmp_path / "run/pixels"), limner.load(tmp_path / "run")
    assert first.model.family == "span" and second.model.family == "srgan"
    assert first.model.network.config == second.model.config.upscaler
    assert second.model.remarks() == ["Its perceptual loss compared pictures in random features."]
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert any("generator/perceptual" in line for line in log)


def test_begins_from_the_run_that_is_named(tmp_path):
    paint(tmp_path / "in", 12, (16, 16))
    settings = {"training": {"batch": 4, "samples": 0}, "quiet": True, "model": {"width": 5}}
    limner.train("span", tmp_path / "in", tmp_path / "up", preset="tiny", budget="8img", **settings)
    train(tmp_path / "in", tmp_path / "run", pixels=str(tmp_path / "up"))
    one = limner.load(tmp_path / "run").model
    assert one.config.upscaler.width == 5
    for other, words in (
        ({"scale": 4}, "its scale is 2, not 4"),
        ({"generator": "fsrcnn"}, "its network is span, not"),
    ):
        with pytest.raises(LimnerError, match=f"srgan cannot build on .*up: {words}.*--model.pixels"):
            train(tmp_path / "in", tmp_path / "other", pixels=str(tmp_path / "up"), **other)
    with pytest.raises(LimnerError, match="needs a run with a network that enlarges pictures"):
        train(tmp_path / "in", tmp_path / "other", pixels=str(tmp_path / "run"))
