"""The first stage of latent models: its sizes, its code, its losses, and when the discriminator comes in."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from limner.core import Batch, Condition, ImageSpec, LimnerError
from limner.families._autoencoding import adaptive_weight
from limner.families._codec import VQ_F4, AutoencoderConfig, ConfiguredCodec
from limner.families.autoencoder import Autoencoder
from limner.losses.autoencoding import kl_gaussian, vq_loss
from limner.losses.perceptual import perceptual_distance
from limner.metrics.features import random_vgg
from limner.networks.gans.patchgan import PatchGAN, fit_layers
from limner.networks.instance import InstanceNorm
from limner.networks.layers import Down
from limner.networks.quantise import Codebook, straight_through
from limner.networks.random_vgg import dead_leaves, random_network
from tests.helpers import golden

TINY = Autoencoder.presets["tiny"].model
SPEC = ImageSpec(3, 16, 16)


def model(spec: ImageSpec = SPEC, **changes) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(dataclasses.replace(TINY, **changes), spec)


def batch(spec: ImageSpec = SPEC, size: int = 8) -> Batch:
    torch.manual_seed(1)
    coarse = torch.rand(size, spec.channels, 4, 4) * 2 - 1
    image = nn.functional.interpolate(coarse, (spec.height, spec.width), mode="bilinear")
    return Batch(image, Condition(size))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- published numbers


def test_vqgan_has_the_published_size():
    """Esser's ImageNet model: 1024 entries of dimension 256, one for each 16x16 pixels."""
    config = AutoencoderConfig(
        kind="vq", patch=1, width=128, multiples=(1, 1, 2, 2, 4), blocks=2, attention_resolutions=(16,),
        hidden=256, latent=256, codes=1024, discriminator_width=64, discriminator_layers=3,
    )  # fmt: skip
    with torch.device("meta"):
        vqgan = Autoencoder(config, ImageSpec(3, 256, 256))
    assert count(vqgan.autoencoder) == 72_141_699
    assert count(vqgan.discriminator) == 2_765_633
    assert vqgan.autoencoder.shape == (256, 16, 16)


def test_patchgan_sees_70_pixels():
    inputs, expected = golden("patchgan_rf")
    torch.manual_seed(0)
    network = PatchGAN(3, 8, norm="instance")
    assert count(PatchGAN(3, norm="instance")) == 2_764_737
    for module in network.modules():  # statistics over the whole image would let a score see all of it
        if isinstance(module, InstanceNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    image = torch.randn(1, 3, 256, 256, requires_grad=True)
    scores = network(image)
    assert list(scores.shape) == expected["output_shape"].int().tolist()
    row, column = inputs["unit"].int().tolist()
    slope = torch.autograd.grad(scores[0, 0, row, column], image)[0].abs().sum((0, 1))
    rows, columns = slope.sum(1).nonzero(), slope.sum(0).nonzero()
    assert rows.max() - rows.min() + 1 == expected["rf_h"]
    assert columns.max() - columns.min() + 1 == expected["rf_w"]


def test_the_kl_term_agrees():
    inputs, expected = golden("kl_gaussian")
    assert_close(kl_gaussian(inputs["mu"], inputs["logvar"]), expected["per_sample"])


def test_the_codebook_term_agrees_in_value_and_both_gradients():
    inputs, expected = golden("vq_commitment")
    z, entries, beta = inputs["z"], inputs["codebook"], inputs["beta"]
    book = Codebook(len(entries), entries.shape[1]).double()
    with torch.no_grad():
        book.entries.weight.copy_(entries)
    index = book.nearest(z)
    assert index.flatten().tolist() == expected["indices"].int().tolist()
    z.requires_grad_()
    z_q = book.lookup(index)
    assert_close(z_q, expected["z_q"])
    for legacy, to_z, to_entry in ((False, beta, 1.0), (True, 1.0, beta)):
        value = vq_loss(z.float(), z_q.float(), beta, legacy)
        assert_close(value.double(), torch.tensor(expected["correct"]).double(), rtol=1e-6, atol=1e-6)
        by_z, by_q = torch.autograd.grad(value, [z, z_q], retain_graph=True)
        difference = 2 * (z - z_q).detach() / z.numel()
        assert_close(by_z, to_z * difference, rtol=1e-5, atol=1e-7)
        assert_close(by_q, -to_entry * difference, rtol=1e-5, atol=1e-7)


def test_random_features_are_the_figures_of_before():
    """The network moved; what was measured with it stays comparable."""
    features = random_vgg()
    assert features.hash == "14a8422ba296"
    found = features.extract(dead_leaves(8, torch.Generator().manual_seed(3)))
    assert_close(found[0, :4], torch.tensor([7.47899, -2.90687, 1.97345, 2.77991]), rtol=1e-3, atol=1e-3)


# ---- the code


def test_down_pads_at_the_right_and_below_only():
    down = Down(1, original=True)
    nn.init.ones_(down.conv.weight)
    nn.init.zeros_(down.conv.bias)
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = x[..., 3, 3] = 1
    assert down(x).flatten().tolist() == [1, 0, 0, 1]  # padded at the left, the first would see nothing more


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (10, 23)])
def test_any_channels_and_sides(kind, channels, height, width):
    spec = ImageSpec(channels, height, width)
    trained = model(spec, kind=kind)
    shown = batch(spec)
    code = trained.encode(shown.image)
    assert code.shape == (8, *trained.autoencoder.shape) == (8, 3, -(-height // 4), -(-width // 4))
    assert trained.decode(code).shape == shown.image.shape
    for objective in trained.objectives():
        loss = torch.stack(list(objective.loss(shown).values())).sum()
        assert loss.isfinite()
        loss.backward()


def test_a_code_is_sampled_from_the_posterior():
    codec = model().autoencoder
    image = batch().image[:1].expand(4000, -1, -1, -1)
    with torch.no_grad():
        mean, logvar = codec.posterior(image[:1])
        drawn = codec.sample(image)
    assert_close(drawn.mean(0), mean[0], atol=0.1, rtol=0)
    assert_close(drawn.std(0), torch.exp(0.5 * logvar[0]), rtol=0.1, atol=0)


def test_vq_draws_from_the_codebook_only():
    codec = model(kind="vq").autoencoder
    code = torch.randn(2, *codec.shape)
    near = codec.codebook.lookup(codec.codebook.nearest(code))
    assert_close(codec.decode(code), codec.decode(near))
    assert len(near.movedim(1, -1).flatten(0, 2).unique(dim=0)) <= TINY.codes
    each = torch.cdist(code.movedim(1, -1).flatten(0, 2), codec.codebook.entries.weight)
    assert torch.equal(codec.codebook.nearest(code).flatten(), each.argmin(1))


def test_standardised_codes_use_most_of_the_codebook():
    """Without it a few entries near 0 get all vectors, and the others never move."""
    image = torch.cat([batch().image.roll(i, 3) * (1 - i / 20) for i in range(16)])
    used = {}
    for standardise in (False, True):
        one = model(kind="vq", codes=64, standardise=standardise)
        one.autoencoder(image)  # the running statistics come near
        with torch.no_grad():
            code = one.autoencoder.posterior(image)[0]
        used[standardise] = len(one.autoencoder.codebook.nearest(code).unique())
        one.eval()
        torch.testing.assert_close(one.encode(image[3:4])[0], one.encode(image)[3], atol=1e-5, rtol=1e-5)
    assert 2 * used[False] < used[True] and used[True] > 30
    assert_close(code.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    assert_close(code.std((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


def test_the_gradient_passes_straight_through_the_codebook():
    x, entry = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    out = straight_through(x, entry)
    assert_close(out, entry)
    by_x, by_entry = torch.autograd.grad((out * torch.arange(3)).sum(), [x, entry], allow_unused=True)
    assert by_x.tolist() == [0, 1, 2] and by_entry is None


# ---- the losses


def test_errors_are_summed_beside_the_kl_term_and_averaged_beside_the_codebook():
    shown = batch()
    for kind, times in (("kl", 3 * 16 * 16), ("vq", 1)):
        one = model(kind=kind, adversarial=0.0, perceptual=2.0)
        torch.manual_seed(5)
        terms = one.autoencoder_loss(shown)
        torch.manual_seed(5)
        drawn, mean, logvar, entry, _ = one.autoencoder(shown.image)
        assert_close(terms["pixels"], times * (drawn - shown.image).abs().mean())
        far = perceptual_distance(
            random_network(drawn.device)(drawn), random_network(drawn.device)(shown.image)
        )
        assert_close(terms["perceptual"], 2 * times * far.mean())
        if kind == "kl":
            assert_close(terms["kl"], 1e-6 * kl_gaussian(mean, logvar).mean())
        else:
            assert_close(terms["codebook"], vq_loss(mean, entry, TINY.commitment))


def test_the_adversarial_loss_begins_after_adversarial_from():
    one = model(adversarial_from=100)
    shown = batch()
    one.advance(99)
    assert "adversarial" not in one.autoencoder_loss(shown)
    loss = one.discriminator_loss(shown)["adversarial"]
    loss.backward()
    assert loss == 0 and not any(p.grad.any() for p in one.discriminator.parameters())
    one.advance(100)
    assert "adversarial" in one.autoencoder_loss(shown)
    assert one.discriminator_loss(shown)["adversarial"] > 0
    late = copy.deepcopy(one).requires_grad_(False)
    with torch.no_grad():
        assert "adversarial" not in late.autoencoder_loss(shown), (
            "held out there are no slopes to weigh it by"
        )


def test_without_weight_the_discriminator_is_not_trained():
    one = model(adversarial_from=0, adversarial=0.0)
    one.advance(100)
    assert one.discriminator_loss(batch())["adversarial"] == 0


def test_the_discriminators_loss_is_halved():
    one = model()
    score = torch.tensor(0.25)
    one.discriminator.patches.forward = lambda image: score.expand(len(image), 1, 2, 2)  # type: ignore[method-assign]
    assert_close(one.discriminator_loss(batch())["adversarial"], torch.tensor(0.5 * (0.75 + 1.25)))


def test_the_adaptive_weight_balances_both_gradients():
    """At the last layer of the decoder, whatever the scale of either (Esser 2021, eq. 7)."""
    last = torch.randn(5, requires_grad=True)
    error, opinion = 30 * last.square().sum(), last.sin().sum() / 7
    weight = adaptive_weight(error, opinion, last)
    by_error, by_opinion = (torch.autograd.grad(x, last)[0].norm() for x in (error, opinion))
    assert_close(weight * by_opinion, by_error, rtol=1e-2, atol=0)
    assert not weight.requires_grad
    one, shown = model(adversarial=0.5, perceptual=0.0, kl=0.0), batch()
    last = one.autoencoder.decoder.last.weight
    one.eval()  # so that the discriminator's statistics stand still
    torch.manual_seed(5)
    terms = one.autoencoder_loss(shown)
    pulls = [
        torch.autograd.grad(terms[n], last, retain_graph=True)[0].norm() for n in ("pixels", "adversarial")
    ]
    assert_close(pulls[1], 0.5 * pulls[0], rtol=0.2, atol=0)  # but for what keeps it from dividing by zero


def test_the_perceptual_distance_is_zero_for_equal_images_and_larger_for_blur_than_brightness():
    see = random_network(torch.device("cpu"))
    image = dead_leaves(32, torch.Generator().manual_seed(4))
    assert perceptual_distance(see(image), see(image)).abs().max() == 0
    blurred = nn.functional.avg_pool2d(image, 3, 1, 1)
    error = (blurred - image).abs().mean()
    shifted = image + error * torch.where(image > 0, -1.0, 1.0)  # as far in pixels
    assert_close((shifted - image).abs().mean(), error)
    far = [perceptual_distance(see(x), see(image)).mean() for x in (blurred, shifted)]
    assert far[0] > 1.2 * far[1]


def test_the_perceptual_network_leaves_the_generator_alone_and_differs_from_the_metric():
    torch.manual_seed(3)
    random_network.cache_clear()
    random_network(torch.device("cpu"))
    after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), after)
    assert not any("perceptual_network" in name for name, _ in model().named_modules())


def test_small_images_get_a_shallower_discriminator():
    assert [fit_layers(3, (side, side)) for side in (8, 12, 24, 64)] == [1, 2, 3, 3]
    for side in (8, 9, 12, 31):
        one = model(ImageSpec(1, side, side + 3), discriminator_layers=3)
        assert one.discriminator(batch(one.spec).image).numel() >= 8


def test_what_it_refuses():
    with pytest.raises(LimnerError, match=r"autoencoder .* 8x8"):
        model(ImageSpec(3, 7, 20))
    with pytest.raises(LimnerError, match=r"autoencoder .* video"):
        model(ImageSpec(3, 16, 16, frames=4))


def test_vq_f4_with_and_without_attention() -> None:
    """The published counts of latent diffusion's VQ-f4 and VQ-f4-noattn, which differ by two attention layers."""
    sizes = []
    for attends in (True, False):
        with torch.device("meta"):
            codec = ConfiguredCodec(
                dataclasses.replace(VQ_F4, middle_attention=attends), ImageSpec(3, 256, 256)
            )
        sizes.append(sum(p.numel() for p in codec.parameters()))
    attention = 2 * 512 + 4 * (512 * 512 + 512)  # a norm, and four 1x1 convolutions
    assert sizes == [55_322_782, 55_322_782 - 2 * attention]
