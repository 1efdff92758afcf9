"""Tokenizers: an image to a small grid of integers and back, the first stage of models that predict tokens.

Four kinds: VQ-VAE (van den Oord 2017) with a codebook of moving averages; VQGAN (Esser 2021), the autoencoder's network
and losses; DALL-E's discrete autoencoder (Ramesh 2021, appendix A); finite scalar quantisation (Mentzer 2024).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from limner.core import Batch, ImageSpec, Model, Objective, Preset
from limner.families._autoencoding import (
    Discriminator,
    adversarial_terms,
    check_perceptual,
    discriminator_terms,
    picture_errors,
)
from limner.families._codec import SMALLEST
from limner.families._presets import training
from limner.families._tokens import (
    BASE_TOKENS,
    DVAE,
    SMALL_DVAE,
    TINY_TOKENS,
    VQGAN_F16,
    ConfiguredTokenizer,
    TokensConfig,
)
from limner.losses.autoencoding import vq_loss
from limner.losses.tokens import dvae_loss, kl_uniform, logit_laplace, perplexity, ramp
from limner.networks.code_use import CodeUse, MovingAverage
from limner.networks.codec import Codec
from limner.networks.dvae import DiscreteAutoencoder, squeeze
from limner.networks.quantise import MovingCodebook
from limner.settings import LimnerError, Optimiser, Training

FEW = 0.1  # share of the codes in use, below which a person is told


class Tokens(Model):
    Config = TokensConfig
    averaged = ("tokenizer",)
    paper = (
        "van den Oord 2017, Neural Discrete Representation Learning; Esser 2021, Taming Transformers; "
        "Ramesh 2021, Zero-Shot Text-to-Image Generation; Mentzer 2024, Finite Scalar Quantization"
    )
    about = "image to a small grid of integers and back"

    temperature: Tensor  # dvae: of the softmax
    kl_weight: Tensor  # dvae

    def __init__(self, config: TokensConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if min(spec.height, spec.width) < SMALLEST:
            raise LimnerError(
                f"tokens needs images of at least {SMALLEST}x{SMALLEST} pixels, not {spec.height}x{spec.width}: "
                "choose a larger --size."
            )
        c = config
        self.tokenizer = ConfiguredTokenizer(c, spec)
        # Of kind vqgan alone; else one of the least size, which judges nothing.
        self.judged = (
            c
            if c.kind == "vqgan"
            else replace(c, adversarial=0.0, discriminator_width=1, discriminator_layers=1)
        )
        self.discriminator = Discriminator(self.judged, spec)
        self.codes = self.tokenizer.codes
        self.use: CodeUse = CodeUse(self.codes)
        book = getattr(self.tokenizer.network, "codebook", None)
        if isinstance(book, MovingCodebook):
            self.use = MovingAverage(book, c.decay, c.unused)
        self.rate = 1.0  # of learning, set by advance
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("kl_weight", torch.zeros(()))

    def objectives(self) -> list[Objective]:
        check_perceptual(self.config)
        shown = ("codes_used", "perplexity")
        tokenizer = Objective("tokenizer", self.tokenizer_loss, shown=shown, rate=lambda: self.rate)
        return [tokenizer, Objective("discriminator", self.discriminator_loss)]

    def advance(self, seen: int) -> None:
        c = self.config
        self.discriminator.present.fill_(float(seen >= c.adversarial_from))
        self.temperature.fill_(ramp(seen, c.temperature_ramp, 1.0, c.coldest))
        self.kl_weight.fill_(ramp(seen, c.kl_ramp, 0.0, c.kl))
        self.rate = ramp(seen, c.rate_ramp, 1.0, c.slowest) if c.rate_ramp else 1.0
        if isinstance(self.use, MovingAverage):
            book = self.tokenizer.network.codebook
            assert isinstance(book, MovingCodebook)
            self.use.update_entries(book)
        else:
            self.use.update()

    def tokenizer_loss(self, batch: Batch) -> dict[str, Tensor]:
        network = self.tokenizer.network
        if isinstance(network, DiscreteAutoencoder):
            terms, index = self.dvae_terms(network, batch.image)
        else:
            terms, index = self.codec_terms(network, batch.image)
        if self.training and not isinstance(self.use, MovingAverage):
            self.use.count(index)
        return terms | {"codes_used": self.use.used(), "perplexity": perplexity(self.use.recent)}

    def codec_terms(self, codec: Codec, image: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the kinds with a convolutional autoencoder, and the codes [B, h, w]."""
        c, coded = self.config, codec(image)
        assert coded.tokens is not None and coded.entry is not None
        terms = picture_errors(c, coded.image, image)
        error = torch.stack(list(terms.values())).sum()
        if c.kind == "vqgan":
            terms["codebook"] = c.codebook * vq_loss(coded.mean, coded.entry, c.commitment, c.legacy)
        if isinstance(self.use, MovingAverage):
            terms["commitment"] = c.commitment * (coded.mean - coded.entry).square().mean()
            if self.training:
                self.use.gather(coded.tokens, coded.mean.detach())
        last = codec.decoder.last.weight
        terms |= adversarial_terms(self.judged, self.discriminator, error, coded.image, last)
        return terms, coded.tokens

    def dvae_terms(self, network: DiscreteAutoencoder, image: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The bound of a discrete autoencoder, divided by the numbers of an image (Ramesh 2021, A.2)."""
        coded = network(image, self.temperature)
        pixels = logit_laplace(coded.mu, coded.log_scale, squeeze(image))  # [B, C, H, W]
        return dvae_loss(pixels, kl_uniform(coded.logits), self.kl_weight), coded.logits.argmax(1)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        def redraw() -> Tensor:
            return self.tokenizer.network(batch.image).image

        return discriminator_terms(self.judged, self.discriminator, batch.image, redraw)

    def remarks(self) -> list[str]:
        used = int(self.use.in_use().sum())
        if used >= FEW * self.codes:
            return []
        advice = {
            "fsq": "train longer, or lower --model.levels",
            "vqvae": "train kind fsq, or lower --model.codes",
        }
        what_to_do = advice.get(self.config.kind, "train kind fsq or vqvae, or lower --model.codes")
        return [
            f"Only {used:,} of the {self.codes:,} codes are in use, {used / self.codes:.1%}: a codebook that has "
            f"collapsed says little of an image; {what_to_do}."
        ]

    def tokenise(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, h, w] integers in {0, ..., codes - 1}."""
        return self.tokenizer.tokenise(image)

    def detokenise(self, tokens: Tensor) -> Tensor:
        """[B, h, w] integers -> [B, C, H, W] in [-1, 1]."""
        return self.tokenizer.detokenise(tokens)

    def codebook(self) -> Tensor:
        """[codes, D], the vector of each integer."""
        return self.tokenizer.codebook()

    encode, decode = tokenise, detokenise


ADAM = Optimiser("adam", betas=(0.5, 0.9))
PLAYERS = "tokenizer", "discriminator"
MUON = Optimiser("muon", lr=2e-3, matrix_lr=0.02)
SMALL_TRAINING = Training(
    batch=32, optimisers={"tokenizer": MUON, "discriminator": replace(ADAM, lr=5e-4)}, average=2_000.0,
    precision="float32",  # bf16 is slower on a CPU: narrow layers at many positions
)  # fmt: skip
VQGAN_TRAINING = training(replace(ADAM, lr=4.5e-6 * 12), *PLAYERS, batch=12, schedule="constant", average=0.0)

Tokens.presets = {
    "tiny": Preset(TINY_TOKENS, training(replace(ADAM, lr=2e-3), *PLAYERS, batch=8, average=100.0)),
    "small": Preset(TokensConfig(), SMALL_TRAINING),
    "small-dvae": Preset(SMALL_DVAE, replace(SMALL_TRAINING, clip=1.0)),
    "base": Preset(
        BASE_TOKENS, training(replace(ADAM, lr=1e-4), *PLAYERS, batch=32, average=50_000.0, warmup=10_000)
    ),
    "paper": Preset(  # DALL-E's
        DVAE,
        training(Optimiser("adamw", lr=1e-4, betas=(0.9, 0.999), decay=1e-4), *PLAYERS, batch=512,
                 schedule="constant", average=512 * 693.0, average_rampup=0.0),
        size=(256, 256), channels=3,
        parameters={"tokenizer": 97_616_006, "discriminator": 118, "use": 0},  # openai/DALL-E
    ),
    "vqgan-f16-1024": Preset(
        VQGAN_F16, VQGAN_TRAINING, size=(256, 256), channels=3,
        parameters={"tokenizer": 72_141_699, "discriminator": 2_765_633, "use": 0},  # CompVis/taming-transformers
    ),
    "vqgan-f16-16384": Preset(
        replace(VQGAN_F16, codes=16384), VQGAN_TRAINING, size=(256, 256), channels=3,
        parameters={"tokenizer": 76_073_859, "discriminator": 2_765_633, "use": 0},  # CompVis/taming-transformers
    ),
}  # fmt: skip
