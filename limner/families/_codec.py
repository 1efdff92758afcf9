"""The settings of an autoencoder and the network that they make, for the families that train one or stand on one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from limner.core import ImageSpec
from limner.fields import Images, Share
from limner.networks.codec import Codec
from limner.networks.images.headroom import HEADROOM
from limner.networks.quantise import Codebook
from limner.networks.shape import FeatureShape

SMALLEST = 8  # pixels: on a shorter side the discriminator has no patch


@dataclass(frozen=True)
class CodecConfig:
    """What autoencoders and tokenizers have in common."""

    may_be_zero: ClassVar[tuple[str, ...]] = ("attention_resolutions",)

    patch: int = 2  # pixels a side of the patches that are folded into channels first
    width: int = 32  # channels of the first level
    multiples: tuple[int, ...] = (1, 2)  # of that width, by level; each level but the last halves the side
    blocks: int = 1  # residual blocks a level; the decoder has one more
    attention_resolutions: tuple[int, ...] = ()  # shorter sides, in pixels, of feature maps with attention
    middle_attention: bool = True  # attention at the code, in the middle of encoder and decoder
    dropout: float = 0.0  # dropout probability inside the blocks
    hidden: int = 4  # channels between encoder or decoder and the 1x1 convolution at the code
    latent: int = 4  # channels of the code
    codes: int = 512  # entries of the codebook, where it is learned
    commitment: float = 0.25  # weight of the commitment term, which draws codes to entries
    standardise: bool = True  # scale the code to mean 0 and deviation 1 first, so that all entries are used
    legacy: bool = False  # that weight is on the codebook term instead, as in published VQGANs
    codebook: float = 1.0  # weight of the VQ loss, beside errors that are averaged over an image
    headroom: Share = 0.0  # how far beyond the range of pixels those at its ends are learned
    perceptual: float = 0.2  # weight of the perceptual distance; 1 in the papers, whose distance is learned
    # network of the perceptual distance: random, imagenet (needs limner[imagenet], and should not judge what it
    # trained), or a safetensors file of VGG-16 or VGG-19 with torchvision's names
    perceptual_network: str = "random"
    adversarial: float = 0.5  # weight of the adversarial loss, relative to the adaptive one (Esser 2021)
    adversarial_from: Images = 20_000  # images seen before the adversarial loss begins
    discriminator_width: int = 32  # channels of its first layer
    discriminator_layers: int = 2  # halvings; 2 see 34 x 34 pixels, 3 see 70 x 70


@dataclass(frozen=True)
class AutoencoderConfig(CodecConfig):
    kind: Literal["kl", "vq"] = "kl"  # of the code: a Gaussian with a KL term, or entries of a codebook
    kl: float = 1e-6  # weight of the KL term, beside errors that are summed over an image


SMALL = AutoencoderConfig(headroom=HEADROOM)
TINY = AutoencoderConfig(
    width=8, hidden=3, latent=3, codes=16, adversarial_from=0, discriminator_width=8, discriminator_layers=1
)
BASE = AutoencoderConfig(
    patch=1, width=96, multiples=(1, 2, 4), blocks=2, adversarial_from=500_000, discriminator_width=64,
    discriminator_layers=3,
)  # fmt: skip
# VQ-f4 of latent diffusion: 3 channels for each 4x4 pixels, of 8,192 entries.
VQ_F4 = AutoencoderConfig(
    kind="vq", patch=1, width=128, multiples=(1, 2, 4), blocks=2, hidden=3, latent=3, codes=8192, standardise=False,
    legacy=True, perceptual=1.0, adversarial=0.75, adversarial_from=0, discriminator_width=64, discriminator_layers=3,
)  # fmt: skip


def codec_shape(config: CodecConfig, spec: ImageSpec) -> FeatureShape:
    c = config
    return FeatureShape(
        spec.channels, spec.channels, (spec.height, spec.width), c.width, c.multiples, c.blocks,
        c.attention_resolutions, c.patch, dropout=c.dropout, middle_attention=c.middle_attention,
    )  # fmt: skip


class ConfiguredCodec(Codec):
    """A codec by the settings of an autoencoder, which it keeps as ``config``."""

    def __init__(self, config: AutoencoderConfig, spec: ImageSpec):
        c = config
        book = Codebook(c.codes, c.latent, wide=c.standardise) if c.kind == "vq" else None
        super().__init__(codec_shape(c, spec), c.hidden, c.latent, book, c.standardise)
        self.config = config
