"""The convolutional autoencoder of VQGAN and of latent diffusion (Esser 2021, table 7; Rombach 2022, app. E)."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import attend
from limner.networks.checks import check_dropout
from limner.networks.layers import Down, Up, at_least_float32, pad_to_multiple
from limner.networks.quantise import Quantiser
from limner.networks.shape import FeatureShape


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, width), width, eps=1e-6)


class Block(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, and a shortcut: a 1x1 convolution where the width changes."""

    def __init__(self, width: int, out: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.conv1 = norm(width), nn.Conv2d(width, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.dropout = nn.Dropout(check_dropout(dropout))
        self.shortcut = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # [B, out, H, W]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))  # [B, out, H, W]
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Self-attention over all positions, with one head."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = norm(width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None]  # [B, 1, HW, 3C]
        h = attend(*qkv.chunk(3, dim=-1))[:, 0]  # [B, HW, C]
        return x + self.out(h.transpose(1, 2).unflatten(2, x.shape[2:]))  # [B, C, H, W]


def middle(width: int, dropout: float, attends: bool) -> list[nn.Module]:
    attention = [Attention(width)] if attends else []
    return [Block(width, width, dropout), *attention, Block(width, width, dropout)]


def blocks(before: int, width: int, count: int, attends: bool, dropout: float) -> list[nn.Module]:
    """The blocks of one level, with attention after each or none."""
    layers: list[nn.Module] = []
    for inputs in [before, *[width] * (count - 1)]:
        layers += [Block(inputs, width, dropout), *([Attention(width)] if attends else [])]
    return layers


class Encoder(nn.Module):
    """[B, channels, H, W] -> [B, out, h, w]; sides that do not divide are padded at the right and below."""

    def __init__(self, shape: FeatureShape, out: int):
        super().__init__()
        s, widths = shape, shape.widths
        self.patch, self.factor = s.patch, s.factor
        layers: list[nn.Module] = [nn.Conv2d(s.channels * s.patch**2, widths[0], 3, padding=1)]
        for level, (before, width) in enumerate(pairwise([widths[0], *widths])):
            layers += blocks(before, width, s.blocks, level in s.attention, s.dropout)
            if level + 1 < len(widths):
                layers.append(Down(width, original=True))
        self.layers = nn.Sequential(*layers, *middle(widths[-1], s.dropout, s.middle_attention))
        self.norm, self.last = norm(widths[-1]), nn.Conv2d(widths[-1], out, 3, padding=1)

    def features(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, widths[-1], h, w], the input of the last convolution."""
        x = F.pixel_unshuffle(pad_to_multiple(image, self.factor), self.patch)
        return F.silu(self.norm(self.layers(x)))

    def forward(self, image: Tensor) -> Tensor:
        return at_least_float32(self.last(self.features(image)))  # [B, out, h, w]


class Decoder(nn.Module):
    """[B, code, h, w] -> [B, channels, H, W]: the encoder in reverse, with one block more at each level."""

    def __init__(self, shape: FeatureShape, code: int):
        super().__init__()
        s, widths = shape, shape.widths
        self.patch, before = s.patch, widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(code, before, 3, padding=1)]
        layers += middle(before, s.dropout, s.middle_attention)
        for level in reversed(range(len(widths))):
            width = widths[level]
            layers += blocks(before, width, s.blocks + 1, level in s.attention, s.dropout)
            before = width
            if level:
                layers.append(Up(width))
        self.layers, self.norm = nn.Sequential(*layers), norm(widths[0])
        self.last = nn.Conv2d(widths[0], s.out * s.patch**2, 3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        x = self.last(F.silu(self.norm(self.layers(code))))  # [B, channels patch^2, H/patch, W/patch]
        return at_least_float32(F.pixel_shuffle(x, self.patch))  # [B, channels, H, W]


class Reconstruction(NamedTuple):
    """Images [B, C, H, W] of any range, and what they were decoded from, [B, latent, h, w]."""

    image: Tensor
    mean: Tensor  # of the posterior, or the code before quantisation
    logvar: Tensor | None  # of the posterior; None with a codebook
    entry: Tensor | None  # the nearest entries of the codebook; None without
    tokens: Tensor | None  # [B, h, w], which entries those are; None without


class Codec(nn.Module):
    """An image to its code [B, latent, h, w] and back: a Gaussian posterior, or quantised by ``codebook``.

    ``hidden`` are the channels between encoder or decoder and their 1x1 convolution at the code. ``standardise``
    gives the code mean 0 and deviation 1 before it is quantised (Lancucki 2020, section 3).
    """

    def __init__(
        self,
        shape: FeatureShape,
        hidden: int,
        latent: int,
        codebook: Quantiser | None = None,
        standardise: bool = False,
    ):
        super().__init__()
        self.size = shape.size
        height, width = (-(-side // shape.factor) for side in shape.size)
        self.shape = (latent, height, width)  # of a code
        parts = 1 if codebook else 2  # a code, or a mean and a log-variance
        self.encoder = Encoder(shape, parts * hidden)
        self.decoder = Decoder(shape, hidden)
        self.quant_conv = nn.Conv2d(parts * hidden, parts * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, hidden, 1)
        self.codebook = codebook
        self.code_norm = nn.BatchNorm2d(latent, affine=False) if codebook and standardise else None

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of the code, [B, latent, h, w] each; with a codebook the code and None."""
        code = at_least_float32(self.quant_conv(self.encoder(image)))  # [B, (2) latent, h, w]
        if self.codebook is not None:
            return code if self.code_norm is None else self.code_norm(code), None
        mean, logvar = code.chunk(2, dim=1)  # [B, latent, h, w] each
        return mean, logvar.clamp(-30, 20)  # exp() overflows beyond

    def sample(self, image: Tensor) -> Tensor:
        """[B, latent, h, w] drawn from the posterior by the global generator; with a codebook the code."""
        mean, logvar = self.posterior(image)
        return mean if logvar is None else mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)

    def decode(self, code: Tensor) -> Tensor:
        """[B, latent, h, w], quantised first with a codebook -> image of any range [B, C, H, W]."""
        if self.codebook is not None:
            code = self.codebook.lookup(self.codebook.nearest(code))
        return self._decode(code)

    def _decode(self, code: Tensor) -> Tensor:
        height, width = self.size
        return self.decoder(self.post_quant_conv(code))[..., :height, :width]

    def tokenise(self, image: Tensor) -> Tensor:
        """[B, C, H, W] -> index [B, h, w] of each position's entry; needs a codebook."""
        assert self.codebook is not None
        return self.codebook.nearest(self.posterior(image)[0])

    def detokenise(self, index: Tensor) -> Tensor:
        """[B, h, w] -> image of any range [B, C, H, W]; needs a codebook."""
        assert self.codebook is not None
        return self._decode(self.codebook.lookup(index))

    def forward(self, image: Tensor) -> Reconstruction:
        mean, logvar = self.posterior(image)
        if self.codebook is None:
            assert logvar is not None
            code = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            return Reconstruction(self._decode(code), mean, logvar, None, None)
        code, entry, index = self.codebook(mean)
        return Reconstruction(self._decode(code), mean, None, entry, index)
