"""What only the variational autoencoder promises; the rest is in test_families.py."""

import dataclasses

import pytest
import torch

from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families.vae import VAE, VAEConfig, VAESampling

TINY = VAE.presets["tiny"].model


def build(spec: ImageSpec, config: VAEConfig = TINY, **changes: object) -> VAE:
    torch.manual_seed(0)
    return VAE(dataclasses.replace(config, **changes), spec).eval()


@pytest.mark.parametrize("architecture", ["convolution", "linear"])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_learns_to_reconstruct(architecture: str, likelihood: str) -> None:
    model = build(ImageSpec(1, 12, 20), architecture=architecture, likelihood=likelihood, hidden=32)
    image = torch.ones(4, 1, 12, 20)
    image[0, :, :6], image[1, :, :, 8:], image[2, :, 6:] = -1, -1, -1
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(120):
        optimiser.zero_grad()
        sum(model.loss(Batch(image, Condition(4))).values()).backward()
        optimiser.step()
    with torch.no_grad():
        redrawn = model.decode(model.encode(image))
    assert (redrawn - image).abs().mean() < 0.25 * (image.mean(0) - image).abs().mean()


def test_odd_sizes_come_back_at_their_size() -> None:
    for height, width in [(28, 28), (9, 33), (50, 22)]:
        model = build(ImageSpec(3, height, width))
        image = torch.zeros(2, 3, height, width)
        assert model.encode(image).shape == (2, TINY.latent)
        assert model.decode(model.encode(image)).shape == image.shape


def test_features_are_the_posterior_mean() -> None:
    model = build(ImageSpec(3, 16, 16))
    image = torch.rand(2, 3, 16, 16)
    mean, logvar = model.autoencoder.posterior(image)
    assert mean.shape == logvar.shape == (2, TINY.latent)
    torch.testing.assert_close(model.features(image), mean)


def test_temperature_zero_decodes_the_prior_mean() -> None:
    model = build(ImageSpec(3, 16, 16))
    (canvas,) = model.sample(Condition(2), VAESampling(temperature=0.0), Draws([1, 2]))
    centre = model.decode(torch.zeros(1, TINY.latent))
    torch.testing.assert_close(canvas.picture(), centre.expand(2, -1, -1, -1))


def test_beta_weighs_the_kl_term_only() -> None:
    batch = Batch(torch.rand(4, 3, 16, 16), Condition(4))
    terms = []
    for beta in (1.0, 3.0):
        torch.manual_seed(1)
        model = build(ImageSpec(3, 16, 16), beta=beta)
        terms.append(model.loss(batch))
    assert terms[0]["reconstruction"] == terms[1]["reconstruction"]
    torch.testing.assert_close(3 * terms[0]["kl"], terms[1]["kl"])


def test_refuses_images_too_small_for_its_convolutions() -> None:
    with pytest.raises(LimnerError, match="not 7x64: choose a larger --size"):
        build(ImageSpec(3, 7, 64))
    build(ImageSpec(3, 7, 64), architecture="linear")
