"""The variational autoencoder: an encoder to a Gaussian latent and a decoder, trained together.

Kingma and Welling 2014, "Auto-Encoding Variational Bayes".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, Objective, Preset
from limner.fields import Checked, Truncation
from limner.losses.autoencoding import kl_gaussian, nll_bernoulli, nll_gaussian
from limner.networks.convnets import mlp, residual_decoder, residual_encoder
from limner.networks.layers import at_least_float32
from limner.settings import LimnerError, Optimiser, Training


@dataclass(frozen=True)
class VAEConfig:
    architecture: Literal["convolution", "linear"] = "convolution"  # linear: one hidden layer, as the paper
    latent: int = 64  # latent dimension
    width: int = 48  # convolution: feature maps at half the resolution; doubled at each further halving
    widest: int = 256  # convolution: limit on the feature maps of a layer
    hidden: int = 400  # linear: units in the hidden layer
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"  # of a pixel; bernoulli: for black and white
    sigma: float = 0.0  # gaussian: standard deviation of a pixel in [-1, 1]; 0: fitted (Rybkin 2021)
    beta: float = 1.0  # weight of the KL term; above 1: disentangled latents (Higgins 2017)


@dataclass(frozen=True)
class VAESampling(Checked):
    temperature: Truncation = 1.0  # standard deviation of the latent; below 1: quality over diversity


class Autoencoder(nn.Module):
    """The paper's two networks: q(z|x) and p(x|z)."""

    def __init__(self, config: VAEConfig, spec: ImageSpec):
        super().__init__()
        size, pixels = (spec.height, spec.width), math.prod(spec.shape)
        outputs = 2 * config.latent  # a mean and a log-variance each
        if config.architecture == "linear":  # tanh units (Kingma 2014, appendix C)
            decoder = mlp([config.latent, config.hidden, pixels], "tanh")
            self.encoder = nn.Sequential(nn.Flatten(), mlp([pixels, config.hidden, outputs], "tanh"))
            self.decoder = nn.Sequential(decoder, nn.Unflatten(1, spec.shape))
        else:
            self.encoder = residual_encoder(spec.channels, size, config.width, config.widest, outputs)
            self.decoder = residual_decoder(config.latent, spec.channels, size, config.width, config.widest)

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log-variance of q(z|x)."""
        mean, logvar = self.encoder(image).float().chunk(2, dim=1)  # [B, latent] each
        return mean, logvar.clamp(-30, 20)  # exp() overflows or vanishes beyond


def _training(lr: float, betas: tuple[float, float] = (0.9, 0.99), **options: Any) -> Training:
    return Training(optimisers={"autoencoder": Optimiser("adam", lr=lr, betas=betas)}, **options)


class VAE(Model):
    Config = VAEConfig
    Sampling = VAESampling
    averaged = ("autoencoder",)
    paper = "Kingma and Welling 2014, Auto-Encoding Variational Bayes"
    about = "variational autoencoder: soft but quick; encodes and decodes"
    presets = {
        "tiny": Preset(VAEConfig(latent=4, width=4, widest=8), _training(3e-3, batch=8, average=100.0)),
        "small": Preset(VAEConfig(), _training(2e-3, batch=64, average=2_000.0)),
        "base": Preset(VAEConfig(latent=256, width=128, widest=512), _training(1e-3, batch=128)),
        # 784-400-20 on 28x28 black and white images; Adam in place of the paper's Adagrad.
        "paper": Preset(
            VAEConfig("linear", latent=20, hidden=400, likelihood="bernoulli"),
            _training(1e-3, betas=(0.9, 0.999), batch=100, schedule="constant", average=0.0),
            size=(28, 28), channels=1, parameters={"autoencoder": 652_824},  # pytorch/examples
        ),
    }  # fmt: skip

    def __init__(self, config: VAEConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if config.architecture == "convolution" and min(spec.height, spec.width) < 8:
            raise LimnerError(
                f"the convolutions of vae need images of at least 8x8 pixels, not {spec.height}x{spec.width}: "
                "choose a larger --size or --model.architecture linear."
            )
        self.autoencoder = Autoencoder(config, spec)

    def objectives(self) -> list[Objective]:
        return [Objective("autoencoder", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Negative evidence lower bound in nats an image (Kingma 2014, eq. 10 with one sample)."""
        mean, logvar = self.autoencoder.posterior(batch.image)
        code = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)  # [B, latent]
        output = at_least_float32(self.autoencoder.decoder(code))  # [B, C, H, W]
        if self.config.likelihood == "bernoulli":
            nll = nll_bernoulli(output, batch.image)
        else:
            nll = nll_gaussian(output, batch.image, self.config.sigma)
        return {"reconstruction": nll.mean(), "kl": self.config.beta * kl_gaussian(mean, logvar).mean()}

    def encode(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, latent], the posterior's mean."""
        return self.autoencoder.posterior(image)[0]

    def decode(self, code: Tensor) -> Tensor:
        """[B, latent] -> [B, C, H, W] in [-1, 1], the mean of the pixels."""
        output = at_least_float32(self.autoencoder.decoder(code))  # [B, C, H, W]
        return 2 * output.sigmoid() - 1 if self.config.likelihood == "bernoulli" else output.clamp(-1, 1)

    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, latent]."""
        return self.encode(image)

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """[B, latent], from the prior."""
        return draws.normal(self.config.latent)

    def paint(self, latent: Tensor, condition: Condition) -> Tensor:
        """[B, latent] -> [B, C, H, W] in [-1, 1]."""
        return self.decode(latent)

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: VAESampling, draws: Draws) -> Iterator[Canvas]:
        """One canvas: a latent from the prior, decoded."""
        picture = self.paint(sampling.temperature * self.latent(condition, draws), condition)
        yield Canvas(1, 1, lambda: picture)
