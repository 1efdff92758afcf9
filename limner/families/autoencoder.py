"""Autoencoders from an image to a small grid of codes and back, KL and VQ: the first stage of latent models.

Esser 2021, "Taming Transformers" (VQGAN), and Rombach 2022, "High-Resolution Image Synthesis with Latent Diffusion
Models", appendices E and G: a pixel loss, a perceptual loss, and later the adversarial loss of a patch discriminator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from limner.core import Batch, ImageSpec, Model, Objective, Part, Preset
from limner.families._autoencoding import (
    Discriminator,
    adversarial_terms,
    check_perceptual,
    discriminator_terms,
    picture_errors,
)
from limner.families._codec import (
    BASE,
    SMALL,
    SMALLEST,
    TINY,
    VQ_F4,
    AutoencoderConfig,
    ConfiguredCodec,
    codec_shape,
)
from limner.families._presets import training
from limner.families._tokens import ConfiguredTokenizer, tokenizer_of
from limner.fields import check
from limner.losses.autoencoding import kl_gaussian, vq_loss
from limner.networks import exchange
from limner.networks.checks import SettingsError
from limner.networks.codec import Reconstruction
from limner.settings import LimnerError, Optimiser, Training


class Autoencoder(Model):
    Config = AutoencoderConfig
    averaged = ("autoencoder",)
    paper = "Esser 2021, Taming Transformers (VQGAN); Rombach 2022, Latent Diffusion Models"
    about = "image to a small grid of codes and back; KL or codebook"

    def __init__(self, config: AutoencoderConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if min(spec.height, spec.width) < SMALLEST:
            raise LimnerError(
                f"autoencoder needs images of at least {SMALLEST}x{SMALLEST} pixels, not {spec.height}x{spec.width}: "
                "choose a larger --size."
            )
        self.autoencoder = ConfiguredCodec(config, spec)
        self.discriminator = Discriminator(config, spec)

    def objectives(self) -> list[Objective]:
        check_perceptual(self.config)
        autoencoder = Objective("autoencoder", self.autoencoder_loss)
        return [autoencoder, Objective("discriminator", self.discriminator_loss)]

    def advance(self, seen: int) -> None:
        self.discriminator.present.fill_(float(seen >= self.config.adversarial_from))

    def autoencoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Rombach 2022, eq. 25. Held-out losses have no adversarial term, whose weight needs gradients.

        Errors are summed over an image beside a KL term and averaged beside a VQ loss, as the papers' weights expect.
        """
        c, image = self.config, batch.image
        coded: Reconstruction = self.autoencoder(image)
        output = coded.image  # [B, C, H, W]
        scale = image[0].numel() if c.kind == "kl" else 1
        terms = picture_errors(c, output, image, scale)
        error = torch.stack(list(terms.values())).sum()
        if coded.logvar is not None:
            terms["kl"] = c.kl * kl_gaussian(coded.mean, coded.logvar).mean()
        if coded.entry is not None:
            terms["codebook"] = c.codebook * vq_loss(coded.mean, coded.entry, c.commitment, c.legacy)
        last = self.autoencoder.decoder.last.weight
        return terms | adversarial_terms(c, self.discriminator, error, output, last)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        def redraw() -> Tensor:
            return self.autoencoder(batch.image).image

        return discriminator_terms(self.config, self.discriminator, batch.image, redraw)

    @property
    def tokenizer(self) -> ConfiguredTokenizer | None:
        """The autoencoder as what other families stand on; None without a codebook."""
        codec = self.autoencoder
        return None if codec.codebook is None else tokenizer_of(codec, self.config, self.spec)

    def encode(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, latent, h, w], the posterior's mean."""
        return self.autoencoder.posterior(image)[0]

    def decode(self, code: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, C, H, W] in [-1, 1]."""
        return self.autoencoder.decode(code).clamp(-1, 1)

    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, D]: the encoder's last features, averaged over positions."""
        return self.autoencoder.encoder.features(image).float().mean((2, 3))

    def to_diffusers(self) -> list[Part]:
        """An AutoencoderKL."""
        c, spec = self.config, self.spec
        try:
            if c.kind != "kl" or c.patch != 1 or c.hidden != c.latent or not c.middle_attention:
                fault = "it is not of kind kl with patches of 1, equal hidden and latent channels, and middle attention"
                raise exchange.ExchangeError(fault)
            groups = exchange.norm_groups(self.autoencoder)
            options = exchange.CodecOptions(codec_shape(c, spec), c.latent, groups)
            return [Part("", exchange.codec_settings(options), exchange.export_weights(self.autoencoder))]
        except exchange.ExchangeError as error:
            raise LimnerError(
                f"autoencoder cannot be written for diffusers, for {error}: train the preset base or paper."
            ) from None

    @classmethod
    def from_diffusers(cls, parts: Sequence[Part]) -> Autoencoder | None:
        """An AutoencoderKL; the discriminator is a new one."""
        part = next((part for part in parts if part.settings["_class_name"] == "AutoencoderKL"), None)
        if part is None:
            return None
        try:
            options = exchange.codec_options(part.settings)
            shape, latent = options.shape, options.latent
            config = AutoencoderConfig(
                patch=1, width=shape.width, multiples=tuple(shape.multiples), blocks=shape.blocks,
                attention_resolutions=tuple(shape.attention_resolutions), hidden=latent, latent=latent,
            )  # fmt: skip
            check(config, "--model.")
            spec = ImageSpec(shape.channels, *shape.size)
            model = exchange.build(lambda: cls(config, spec), "autoencoder", part.weights, options.groups)
        except (exchange.ExchangeError, SettingsError) as error:
            raise LimnerError(f"autoencoder cannot read this AutoencoderKL, for {error}.") from None
        return model


ADAM = Optimiser("adam", betas=(0.5, 0.9))
PLAYERS = ("autoencoder", "discriminator")
MUON = Optimiser("muon", lr=2e-3, matrix_lr=0.02)

Autoencoder.presets = {
    "tiny": Preset(TINY, training(replace(ADAM, lr=2e-3), *PLAYERS, batch=8, average=100.0)),
    "small": Preset(
        SMALL,
        Training(  # batches of 8: in a few minutes on a CPU, more steps matter more than more images (docs/log.md)
            batch=8, optimisers={"autoencoder": MUON, "discriminator": replace(ADAM, lr=5e-4)}, average=2_000.0,
            precision="float32",  # bf16 is slower on a CPU: narrow layers at many positions
        ),
    ),
    "base": Preset(BASE, training(replace(ADAM, lr=1e-4), *PLAYERS, batch=32, average=50_000.0, warmup=10_000)),
    # KL-f8 of latent diffusion: 4 channels for each 8x8 pixels.
    "paper": Preset(
        AutoencoderConfig(
            patch=1, width=128, multiples=(1, 2, 4, 4), blocks=2, perceptual=1.0, adversarial_from=50_001 * 12,
            discriminator_width=64, discriminator_layers=3,
        ),
        training(replace(ADAM, lr=4.5e-6 * 12), *PLAYERS, batch=12, schedule="constant", average=0.0),
        size=(256, 256), channels=3,
        parameters={"autoencoder": 83_653_863, "discriminator": 2_765_633},  # CompVis/latent-diffusion
    ),
    "vq-f4-noattn": Preset(
        replace(VQ_F4, middle_attention=False),
        training(replace(ADAM, lr=4.5e-6 * 8), *PLAYERS, batch=8, schedule="constant", average=0.0),
        size=(256, 256), channels=3,
        parameters={"autoencoder": 53_219_486, "discriminator": 2_765_633},  # CompVis/latent-diffusion
    ),
}  # fmt: skip
