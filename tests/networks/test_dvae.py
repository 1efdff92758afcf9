"""DALL-E's discrete autoencoder: published sizes, its pixels, its codes."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from limner.networks.dvae import Block, DiscreteAutoencoder, squeeze, unsqueeze
from limner.networks.shape import FeatureShape
from tests.helpers import golden

# hidden width, blocks a group, codes, first channels of the decoder: parameters of openai/DALL-E's encoder and decoder
PUBLISHED = [
    (256, 2, 8192, 128, 53_786_240, 43_829_766),
    (64, 1, 512, 32, 1_321_744, 1_430_006),
    (64, 2, 1024, 128, 2_848_160, 2_869_990),
]


def network(size=(32, 32), channels=3, multiples=(1, 2, 4), patch=1, codes=12) -> DiscreteAutoencoder:
    torch.manual_seed(0)
    shape = FeatureShape(channels, 2 * channels, size, 8, multiples, 1, patch=patch)
    return DiscreteAutoencoder(shape, codes, 6)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("width", "blocks", "codes", "initial", "encoder", "decoder"), PUBLISHED)
def test_published_sizes(width, blocks, codes, initial, encoder, decoder):
    with torch.device("meta"):
        dvae = DiscreteAutoencoder(
            FeatureShape(3, 6, (256, 256), width, (1, 2, 4, 8), blocks), codes, initial
        )
    assert (count(dvae.encoder), count(dvae.decoder)) == (encoder, decoder)
    assert dvae.shape[1:] == (32, 32)


def test_published_sizes_by_group():
    """Of the largest: the input, the four groups, the output."""
    with torch.device("meta"):
        dvae = DiscreteAutoencoder(FeatureShape(3, 6, (256, 256), 256, (1, 2, 4, 8), 2), 8192, 128)
    encoder = [37_888, 476_032, 1_739_008, 6_951_424, 27_796_480, 16_785_408]
    decoder = [1_048_704, 29_697_024, 9_966_080, 2_492_672, 623_744, 1_542]
    for part, expected in ((dvae.encoder, encoder), (dvae.decoder, decoder)):
        assert [count(m) for m in (part.first, *part.groups, part.last)] == expected


def test_pixels_agree():
    inputs, expected = golden("logit_laplace_pixels")
    pixels = inputs["pixels"] / 255 * 2 - 1
    assert_close(squeeze(pixels, inputs["eps"]), expected["mapped"], rtol=1e-9, atol=1e-9)
    shown = (unsqueeze(inputs["mu"], inputs["eps"]) + 1) / 2
    assert_close(shown, expected["decoded"], rtol=1e-9, atol=1e-9)


def test_pixels_come_back():
    pixels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    assert_close(unsqueeze(torch.logit(squeeze(pixels))), pixels, rtol=1e-9, atol=1e-9)


def test_initial_weights_and_gain():
    block = Block(64, 256, (3, 3, 3, 1), 1 / 64)
    for layer in block.convs:
        fan_in = layer.weight[0].numel()
        assert_close(layer.weight.std() * fan_in**0.5, torch.tensor(1.0), rtol=0.1, atol=0)
        assert not layer.bias.any()
    x = torch.randn(1, 64, 4, 4)
    h = x
    for layer in block.convs:
        h = layer(torch.relu(h))
    assert_close(block(x), block.shortcut(x) + h / 64)
    dvae = DiscreteAutoencoder(FeatureShape(3, 6, (64, 64), 8, (1, 2, 4, 8), 2), 16, 8)
    assert {m.gain for m in dvae.modules() if isinstance(m, Block)} == {1 / 64}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("size", "multiples", "patch"), [((32, 32), (1, 2, 4), 1), ((10, 23), (1, 2), 2), ((9, 9), (1,), 1)]
)
def test_any_channels_sides_and_halvings(channels, size, multiples, patch):
    dvae = network(size, channels, multiples, patch)
    image = torch.rand(2, channels, *size) * 2 - 1
    factor = patch * 2 ** (len(multiples) - 1)
    tokens = dvae.tokenise(image)
    assert tokens.shape == (2, -(-size[0] // factor), -(-size[1] // factor)) == (2, *dvae.shape[1:])
    assert dvae.detokenise(tokens).shape == image.shape and dvae.detokenise(tokens).abs().max() <= 1
    coded = dvae(image, 1.0)
    assert coded.mu.shape == coded.log_scale.shape == image.shape


def test_tokens_are_the_most_probable_codes_without_noise_and_decode_as_one_hot():
    dvae, image = network(), torch.rand(2, 3, 32, 32) * 2 - 1
    tokens = dvae.tokenise(image)
    torch.manual_seed(1)
    assert torch.equal(dvae.tokenise(image), tokens)
    assert torch.equal(dvae(image, 1.0).logits.argmax(1), tokens)
    one_hot = nn.functional.one_hot(tokens, 12).movedim(-1, 1).float()
    mu, _ = dvae.decoder(one_hot).chunk(2, 1)
    assert_close(dvae.detokenise(tokens), unsqueeze(mu))
    assert dvae.vectors().shape == (12, 6)


def test_a_low_temperature_draws_codes_by_their_probability():
    dvae = network(codes=3).double()
    logits = torch.tensor([0.0, 1.0, 2.0]).double()[:, None, None].expand(3, 8, 8)
    dvae.encoder.forward = lambda image: logits.expand(len(image), -1, -1, -1)  # type: ignore[method-assign]
    drawn = []
    dvae.decoder.forward = lambda soft: drawn.append(soft) or torch.zeros(len(soft), 6, 32, 32)  # type: ignore[method-assign]
    dvae(torch.zeros(200, 3, 32, 32).double(), 0.01)
    assert drawn[0].max(1).values.mean() > 0.98
    shares = drawn[0].mean((0, 2, 3))
    assert_close(shares, logits[:, 0, 0].softmax(0), rtol=0.05, atol=0.01)
