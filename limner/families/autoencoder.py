"""Autoencoders that keep what an image looks like in a small grid of vectors: KL and VQ, the first stage of others.

Esser 2021, "Taming Transformers" (VQGAN), and Rombach 2022, "High-Resolution Image Synthesis with Latent Diffusion
Models", appendices E and G: a pixel loss, a perceptual one, and a discriminator of patches that comes in later.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limner.core import Batch, ImageSpec, LimnerError, Model, Objective, Optimiser, Part, Preset, Training
from limner.losses.adversarial import hinge_d, hinge_g
from limner.losses.perceptual import perceptual_distance
from limner.losses.variational import kl_gaussian
from limner.networks import exchange
from limner.networks.codec import Decoder, Encoder
from limner.networks.gans.patchgan import PatchGAN, fitting
from limner.networks.images.channels import with_channels
from limner.networks.quantise import Codebook, straight_through, vq_loss
from limner.networks.random_vgg import RandomVGG, leaves

SMALLEST = 8  # pixels: a shorter side leaves the discriminator no patch


@dataclass(frozen=True)
class AutoencoderConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("attention", "adversarial_from")

    kind: Literal["kl", "vq"] = "kl"  # what keeps the code simple: a Gaussian's KL term, or a codebook
    patch: int = 2  # pixels a side that the networks see as one place
    width: int = 32  # feature maps of the first level
    multiples: tuple[int, ...] = (1, 2)  # of that width, by level; each level but the last halves the size
    blocks: int = 1  # residual blocks a level; the decoder has one more
    attention: tuple[int, ...] = ()  # levels that attend; what lies between the networks always does
    dropout: float = 0.0  # inside the blocks
    hidden: int = 4  # maps between a network and its 1x1 convolution at the code
    latent: int = 4  # numbers in a vector of the code
    codes: int = 512  # vq: entries of the codebook
    commitment: float = 0.25  # vq: how much vectors are drawn to their entries
    standardise: bool = True  # vq: the code gets mean 0 and deviation 1 first, so that all entries are met
    legacy: bool = False  # vq: that weight is on the entries instead, as in published VQGANs
    kl: float = 1e-6  # weight of the KL term, beside errors that are summed over an image
    codebook: float = 1.0  # weight of the codebook term, beside errors that are averaged over an image
    perceptual: float = 0.2  # weight of the perceptual distance; in the papers, with learnt weights in it, 1
    adversarial: float = 0.5  # weight of the discriminator's opinion, when it pulls as hard as the error does
    adversarial_from: int = 20_000  # images seen before the discriminator comes in
    discriminator_width: int = 32  # feature maps of its first layer
    discriminator_layers: int = 2  # halvings; 2 see 34 x 34 pixels, 3 see 70 x 70


class Codec(nn.Module):
    """An image to its code [B, latent, h, w] and back. The code of kind vq is what the codebook is asked for."""

    def __init__(self, config: AutoencoderConfig, spec: ImageSpec):
        super().__init__()
        c = config
        self.config, self.size = config, (spec.height, spec.width)
        widths, rest = [c.width * m for m in c.multiples], (c.blocks, c.attention, c.patch, c.dropout)
        twice = 2 if c.kind == "kl" else 1  # a mean and a log-variance
        self.encoder = Encoder(spec.channels, twice * c.hidden, widths, *rest)
        self.decoder = Decoder(spec.channels, c.hidden, widths, *rest)
        self.quant_conv = nn.Conv2d(twice * c.hidden, twice * c.latent, 1)
        self.post_quant_conv = nn.Conv2d(c.latent, c.hidden, 1)
        self.codebook = Codebook(c.codes, c.latent, wide=c.standardise) if c.kind == "vq" else None
        normalised = c.kind == "vq" and c.standardise  # Lancucki 2020, section 3
        self.code_norm = nn.BatchNorm2d(c.latent, affine=False) if normalised else None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(latent, h, w) of a code."""
        height, width = (-(-side // self.encoder.factor) for side in self.size)
        return self.config.latent, height, width

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean and the log-variance of the code; kind vq has no other code than the mean."""
        code = self.quant_conv(self.encoder(image)).float()  # [B, (2) latent, h, w]
        if self.codebook is not None:
            return code if self.code_norm is None else self.code_norm(code), None
        mean, logvar = code.chunk(2, dim=1)  # [B, latent, h, w] each
        return mean, logvar.clamp(-30, 20)  # beyond that exp() is no longer of use

    def code(self, image: Tensor) -> Tensor:
        """One drawn from the posterior, by the global generator: [B, latent, h, w]."""
        mean, logvar = self.posterior(image)
        return mean if logvar is None else mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)

    def draw(self, code: Tensor) -> Tensor:
        """[B, latent, h, w], quantised where it is to be -> image of any range [B, C, H, W]."""
        height, width = self.size
        return self.decoder(self.post_quant_conv(code))[..., :height, :width]

    def decode(self, code: Tensor) -> Tensor:
        """[B, latent, h, w] -> image of any range [B, C, H, W]."""
        return self.draw(code if self.codebook is None else self.codebook.lookup(self.codebook.nearest(code)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The image again, and what its code costs: nats an image, or the pull between vectors and entries."""
        mean, logvar = self.posterior(image)
        if logvar is not None:
            code = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            return self.draw(code), kl_gaussian(mean, logvar).mean()
        assert self.codebook is not None
        entry = self.codebook.lookup(self.codebook.nearest(mean))
        return self.draw(straight_through(mean, entry)), vq_loss(
            mean, entry, self.config.commitment, self.config.legacy
        )


class Discriminator(nn.Module):
    """Scores of patches; it knows whether it has come in, so that measuring agrees with training."""

    present: Tensor

    def __init__(self, config: AutoencoderConfig, spec: ImageSpec):
        super().__init__()
        layers = fitting(config.discriminator_layers, (spec.height, spec.width))
        self.patches = PatchGAN(spec.channels, config.discriminator_width, layers)
        self.register_buffer("present", torch.tensor(float(config.adversarial_from == 0)))

    def forward(self, image: Tensor) -> Tensor:
        return self.patches(image)  # [B, 1, h, w]


@functools.cache
def perceptual_network(device: torch.device) -> RandomVGG:
    """What the perceptual distance sees with: random weights, always the same, as published ones cannot be had here.

    Other weights than those of the default features (limner.metrics), which would otherwise measure what was trained.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        network = RandomVGG(((16, 16), (32, 32), (64, 64)), generator).calibrate(leaves(64, generator))
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


class Autoencoder(Model):
    Config = AutoencoderConfig
    averaged: ClassVar[tuple[str, ...]] = ("autoencoder",)
    paper: ClassVar[str] = "Esser 2021, Taming Transformers (VQGAN); Rombach 2022, Latent Diffusion Models"
    about: ClassVar[str] = "image to a small grid of codes and back; KL or codebook"

    def __init__(self, config: AutoencoderConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if min(spec.height, spec.width) < SMALLEST:
            raise LimnerError(
                f"autoencoder needs images of at least {SMALLEST}x{SMALLEST} pixels, not {spec.height}x{spec.width}: "
                "choose a larger --size."
            )
        self.autoencoder = Codec(config, spec)
        self.discriminator = Discriminator(config, spec)

    def objectives(self) -> list[Objective]:
        return [
            Objective("autoencoder", self.autoencoder_loss),
            Objective("discriminator", self.discriminator_loss),
        ]

    def advance(self, seen: int) -> None:
        self.discriminator.present.fill_(float(seen >= self.config.adversarial_from))

    def autoencoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Rombach 2022, eq. 25. Held-out losses leave the discriminator out: its weight needs slopes.

        The errors are summed over an image beside a KL term, and averaged over it beside a codebook's, which is what
        the weights of the two papers are for.
        """
        c = self.config
        image = batch.image
        drawn, cost = self.autoencoder(image)  # [B, C, H, W]
        scale = image[0].numel() if c.kind == "kl" else 1
        terms = {"pixels": scale * (drawn - image).abs().mean()}
        if c.perceptual:
            see = perceptual_network(image.device)
            seen = see(with_channels(drawn, 3)), see(with_channels(image, 3))
            terms["perceptual"] = c.perceptual * scale * perceptual_distance(*seen).mean()
        error = torch.stack(list(terms.values())).sum()
        terms |= {"kl": c.kl * cost} if c.kind == "kl" else {"codebook": c.codebook * cost}
        if c.adversarial and self.discriminator.present and drawn.requires_grad:
            opinion = hinge_g(self.discriminator(drawn))
            weight = balance(error, opinion, self.autoencoder.decoder.last.weight)
            terms["adversarial"] = c.adversarial * weight * opinion
        return terms

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Half the hinge loss, as in VQGAN; nothing before it comes in."""
        if not (self.config.adversarial and self.discriminator.present):
            nothing = torch.stack([p.sum() for p in self.discriminator.parameters()]).sum()
            return {"adversarial": 0.0 * nothing}
        with torch.no_grad():
            drawn, _ = self.autoencoder(batch.image)
        return {"adversarial": 0.5 * hinge_d(self.discriminator(batch.image), self.discriminator(drawn))}

    def encode(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, latent, h, w], the posterior's mean."""
        return self.autoencoder.posterior(image)[0]

    def decode(self, code: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, C, H, W] in [-1, 1]."""
        return self.autoencoder.decode(code).clamp(-1, 1)

    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, D]: what the code is made from, averaged over places."""
        return self.autoencoder.encoder.describe(image).float().mean((2, 3))

    def to_diffusers(self) -> list[Part]:
        """An AutoencoderKL."""
        c, spec = self.config, self.spec
        try:
            if c.kind != "kl" or c.patch != 1 or c.hidden != c.latent:
                raise ValueError(
                    "it is not of kind kl, with patches of 1 and as many hidden maps as latent ones"
                )
            settings = exchange.codec_settings(
                channels=spec.channels, size=(spec.height, spec.width), width=c.width, multiples=c.multiples,
                blocks=c.blocks, attention=c.attention, latent=c.latent, groups=exchange.groups(self.autoencoder),
            )  # fmt: skip
            return [Part("", settings, exchange.give(self.autoencoder))]
        except ValueError as error:
            raise LimnerError(
                f"autoencoder cannot be written for diffusers, for {error}: train the preset base or paper."
            ) from None

    @classmethod
    def from_diffusers(cls, parts: Sequence[Part]) -> Autoencoder | None:
        """An AutoencoderKL; its discriminator begins anew."""
        found = [part for part in parts if part.settings["_class_name"] == "AutoencoderKL"]
        if not found:
            return None
        try:
            o = exchange.codec_options(found[0].settings)
            config = AutoencoderConfig(
                patch=1, width=o["width"], multiples=o["multiples"], blocks=o["blocks"], attention=o["attention"],
                hidden=o["latent"], latent=o["latent"],
            )  # fmt: skip
            model = cls(config, ImageSpec(o["channels"], *o["size"]))
            exchange.need(
                {"norm_num_groups": o["groups"]}, norm_num_groups=exchange.groups(model.autoencoder)
            )
            exchange.take(model.autoencoder, found[0].weights)
        except ValueError as error:
            raise LimnerError(f"autoencoder cannot read this AutoencoderKL, for {error}.") from None
        return model


def balance(error: Tensor, opinion: Tensor, last: Tensor, most: float = 1e4) -> Tensor:
    """How much stronger the error pulls at the decoder's last layer than the discriminator (Esser 2021, eq. 7)."""
    (by_error,), (by_opinion,) = (
        torch.autograd.grad(loss, last, retain_graph=True) for loss in (error, opinion)
    )
    return (by_error.norm() / (by_opinion.norm() + 1e-4)).clamp(0, most).detach()


def adam(lr: float, **options: object) -> Training:
    """Both players alike."""
    return Training(
        optimisers={p: Optimiser("adam", lr=lr, betas=(0.5, 0.9)) for p in ("autoencoder", "discriminator")},
        **options,  # type: ignore[arg-type]
    )


# Esser's ImageNet model: 1024 entries of 256 numbers, one for each 16 x 16 pixels.
VQGAN = AutoencoderConfig(
    kind="vq", patch=1, width=128, multiples=(1, 1, 2, 2, 4), blocks=2, attention=(4,), hidden=256, latent=256,
    codes=1024, standardise=False, legacy=True, perceptual=1.0, adversarial=0.8, adversarial_from=250_001 * 12,
    discriminator_width=64, discriminator_layers=3,
)  # fmt: skip

Autoencoder.presets = {
    "tiny": Preset(
        AutoencoderConfig(
            width=8,
            multiples=(1, 2),
            hidden=3,
            latent=3,
            codes=16,
            adversarial_from=0,
            discriminator_width=8,
            discriminator_layers=1,
        ),
        adam(2e-3, batch=8, average=100.0),
    ),
    "small": Preset(
        AutoencoderConfig(),
        Training(
            batch=32,
            optimisers={
                "autoencoder": Optimiser("muon", lr=2e-3, matrix_lr=0.02),
                "discriminator": Optimiser("adam", lr=5e-4, betas=(0.5, 0.9)),
            },
            average=2_000.0,
            precision="float32",  # narrow layers at many places: bf16 takes half as long again, even where it is quick
        ),
    ),
    "base": Preset(
        AutoencoderConfig(
            patch=1,
            width=96,
            multiples=(1, 2, 4),
            blocks=2,
            adversarial_from=500_000,
            discriminator_width=64,
            discriminator_layers=3,
        ),
        adam(1e-4, batch=32, average=50_000.0, warmup=10_000),
    ),
    # KL-f8 of latent diffusion: 4 numbers for each 8 x 8 pixels.
    "paper": Preset(
        AutoencoderConfig(
            patch=1,
            width=128,
            multiples=(1, 2, 4, 4),
            blocks=2,
            perceptual=1.0,
            adversarial_from=50_001 * 12,
            discriminator_width=64,
            discriminator_layers=3,
        ),
        adam(4.5e-6 * 12, batch=12, schedule="constant", average=0.0),
        size=(256, 256),
        channels=3,
        parameters={"autoencoder": 83_653_863, "discriminator": 2_765_633},  # CompVis/latent-diffusion
    ),
}
