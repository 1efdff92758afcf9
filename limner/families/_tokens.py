"""The settings of a tokenizer and the network that they make, for the families that train one or stand on one."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn

from limner.core import ImageSpec, Parent, Tokenises
from limner.families._codec import AutoencoderConfig, CodecConfig, codec_shape
from limner.fields import Images, PositiveShare, Share
from limner.networks.codec import Codec
from limner.networks.dvae import DiscreteAutoencoder
from limner.networks.quantise import Codebook, GridCodebook, MovingCodebook, Quantiser


@dataclass(frozen=True)
class TokensConfig(CodecConfig):
    # vqvae: a codebook of moving averages; vqgan: a learned one, and a discriminator; dvae: DALL-E's; fsq: a fixed grid
    kind: Literal["vqvae", "vqgan", "dvae", "fsq"] = "fsq"
    levels: tuple[int, ...] = (4, 4, 4, 4)  # fsq: values by channel; their product is the codes
    decay: Share = 0.99  # vqvae: of the moving averages, by step
    unused: Images = 2_000  # vqvae: images after which a code that none of them used is restarted; 0: never
    initial: int = 128  # dvae: channels of a code in the decoder
    kl: float = 6.6  # dvae: weight of the KL term, beside -log p, both divided by the numbers of an image
    kl_ramp: Images = 300  # dvae: images over which that weight rises from 0
    coldest: PositiveShare = 1 / 16  # dvae: temperature of the softmax in the end
    temperature_ramp: Images = 40_000  # dvae: images over which it falls from 1
    slowest: PositiveShare = 1 / 80  # factor of the learning rate in the end
    rate_ramp: Images = 0  # images over which it falls from 1; 0: only the schedule lowers the rate


# Of kind vqgan, the one that trains both of its submodules.
TINY_TOKENS = TokensConfig(
    kind="vqgan", width=8, hidden=3, latent=3, codes=16, levels=(4, 2, 2), initial=8, adversarial_from=0,
    discriminator_width=8, discriminator_layers=1,
)  # fmt: skip
BASE_TOKENS = TokensConfig(
    kind="vqgan", patch=1, width=96, multiples=(1, 2, 2, 4), blocks=2, hidden=64, latent=16, codes=8192,
    adversarial_from=500_000, discriminator_width=64, discriminator_layers=3,
)  # fmt: skip
# VQGAN f16 of ImageNet: 256 tokens for 256x256 pixels.
VQGAN_F16 = TokensConfig(
    kind="vqgan", patch=1, width=128, multiples=(1, 1, 2, 2, 4), blocks=2, attention_resolutions=(16,), hidden=256,
    latent=256, codes=1024, standardise=False, legacy=True, perceptual=1.0, adversarial=0.8,
    adversarial_from=250_001 * 12, discriminator_width=64, discriminator_layers=3,
)  # fmt: skip
# DALL-E's on a CPU: 64 tokens for 32x32 pixels. The KL's mean over positions has the published weight, 6.6/192.
SMALL_DVAE = TokensConfig(kind="dvae", patch=1, multiples=(1, 2, 4), codes=256, kl=6.6 * 48 / 192)
# DALL-E's: 1,024 tokens for 256x256 pixels. Its ramps are in updates of 512 images.
DVAE = TokensConfig(
    kind="dvae", patch=1, width=256, multiples=(1, 2, 4, 8), blocks=2, codes=8192, initial=128, kl_ramp=5_000 * 512,
    temperature_ramp=150_000 * 512, rate_ramp=1_200_000 * 512,
)  # fmt: skip


class ConfiguredTokenizer(nn.Module):
    """A tokenizer by its settings, which it keeps as ``config``: an image [B, C, H, W] in [-1, 1] to integers and back.

    ``network``: one that is there already, with these settings.
    """

    def __init__(
        self, config: TokensConfig, spec: ImageSpec, network: Codec | DiscreteAutoencoder | None = None
    ):
        super().__init__()
        self.config = config
        self.network = network or make_network(config, spec)
        self.codes = _book(self.network).codes
        self.grid: tuple[int, int] = self.network.shape[1:]  # (h, w) of the tokens of an image
        self.cell = self.network.encoder.factor  # pixels a side of the image for each token

    def tokenise(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, h, w] integers in {0, ..., codes - 1}."""
        with torch.autocast(image.device.type, enabled=False):  # a token near a tie depends on rounding
            return self.network.tokenise(image.to(next(self.network.parameters()).dtype))

    def detokenise(self, tokens: Tensor) -> Tensor:
        """[B, h, w] integers -> [B, C, H, W] in [-1, 1]."""
        return self.network.detokenise(tokens).clamp(-1, 1)

    def codebook(self) -> Tensor:
        """[codes, D], the vector of each integer."""
        return _book(self.network).vectors()


def _book(network: Codec | DiscreteAutoencoder) -> Quantiser | DiscreteAutoencoder:
    """What has the codes of a tokenizer's network."""
    if isinstance(network, DiscreteAutoencoder):
        return network
    assert network.codebook is not None
    return network.codebook


def make_network(config: TokensConfig, spec: ImageSpec) -> Codec | DiscreteAutoencoder:
    c, shape = config, codec_shape(config, spec)
    if c.kind == "dvae":
        return DiscreteAutoencoder(replace(shape, out=2 * spec.channels), c.codes, c.initial)
    if c.kind == "fsq":
        return Codec(shape, c.hidden, len(c.levels), GridCodebook(c.levels), c.standardise)
    moving = MovingCodebook if c.kind == "vqvae" else None
    book = moving(c.codes, c.latent) if moving else Codebook(c.codes, c.latent, wide=c.standardise)
    return Codec(shape, c.hidden, c.latent, book, c.standardise)


def tokenizer_of(codec: Codec, config: AutoencoderConfig, spec: ImageSpec) -> ConfiguredTokenizer:
    """The network of an autoencoder of kind vq as a tokenizer, without a copy."""
    settings = {f.name: getattr(config, f.name) for f in fields(CodecConfig)}
    return ConfiguredTokenizer(TokensConfig(kind="vqgan", **settings), spec, codec)


# A family that stands on tokens has the config fields ``tokens: str`` (which run) and ``tokenizer: TokensConfig``, the
# submodule ``tokenizer``, and this under ``parents["tokens"]``.
TOKENIZER = Parent(Tokenises, "a tokenizer", "tokenizer", "tokenizer", source="tokenizer", family="tokens")
