"""DALL-E's discrete autoencoder: its encoder and decoder (Ramesh 2021, appendix A.1; openai/DALL-E)."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.layers import at_least_float32, pad_to_multiple, resample
from limner.networks.shape import FeatureShape


def conv(inputs: int, out: int, kernel: int) -> nn.Conv2d:
    """Weights N(0, 1 / fan-in), biases 0."""
    layer = nn.Conv2d(inputs, out, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(inputs * kernel**2))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Pointwise(nn.Module):
    """A 1x1 convolution from or to codes. Like an embedding it is no matrix that Muon may make orthogonal."""

    def __init__(self, inputs: int, out: int):
        super().__init__()
        layer = conv(inputs, out, 1)
        self.weight, self.bias = layer.weight, nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class Block(nn.Module):
    """ReLU before each of four convolutions, in a quarter of the width; their sum is added times ``gain``."""

    def __init__(self, width: int, out: int, kernels: tuple[int, int, int, int], gain: float):
        super().__init__()
        inner = max(1, out // 4)
        widths = [width, inner, inner, inner, out]
        layers = [conv(a, b, kernel) for (a, b), kernel in zip(pairwise(widths), kernels, strict=True)]
        self.convs, self.gain = nn.ModuleList(layers), gain
        self.shortcut = conv(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.convs:
            h = layer(F.relu(h))  # [B, out / 4, H, W], at last [B, out, H, W]
        return self.shortcut(x) + self.gain * h


def gain_of(shape: FeatureShape) -> float:
    """Of the branches: 1 / (number of blocks)^2."""
    return 1 / (len(shape.multiples) * shape.blocks) ** 2


class Encoder(nn.Module):
    """[B, channels, H, W] -> logits of the codes [B, codes, h, w]; a level ends with max-pooling."""

    def __init__(self, shape: FeatureShape, codes: int):
        super().__init__()
        s, kernels, gain = shape, (3, 3, 3, 1), gain_of(shape)
        self.patch, self.factor = s.patch, s.factor
        self.first = conv(s.channels * s.patch**2, s.widths[0], 7)
        self.groups = nn.ModuleList(
            nn.Sequential(
                *(Block(before if i == 0 else width, width, kernels, gain) for i in range(s.blocks))
            )
            for before, width in pairwise([s.widths[0], *s.widths])
        )
        self.last = Pointwise(s.widths[-1], codes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(F.pixel_unshuffle(pad_to_multiple(image, self.factor), self.patch))
        for level, group in enumerate(self.groups):
            x = group(
                F.max_pool2d(x, 2) if level else x
            )  # [B, width, H, W], by level half of the side before
        return at_least_float32(self.last(F.relu(x)))  # [B, codes, h, w]


class Decoder(nn.Module):
    """Weights of the codes [B, codes, h, w], one-hot or soft -> [B, out, H, W]; the encoder's levels in reverse."""

    def __init__(self, shape: FeatureShape, codes: int, initial: int):
        super().__init__()
        s, kernels, gain = shape, (1, 3, 3, 3), gain_of(shape)
        self.patch = s.patch
        self.first = Pointwise(codes, initial)
        widths = [initial, *reversed(s.widths)]
        self.groups = nn.ModuleList(
            nn.Sequential(
                *(Block(before if i == 0 else width, width, kernels, gain) for i in range(s.blocks))
            )
            for before, width in pairwise(widths)
        )
        self.last = conv(s.widths[0], s.out * s.patch**2, 1)

    def forward(self, weights: Tensor) -> Tensor:
        return self.expand(self.first(weights))

    def expand(self, x: Tensor) -> Tensor:
        """Vectors of the codes [B, initial, h, w] -> [B, out, H, W]."""
        for level, group in enumerate(self.groups):
            x = group(resample(x, "up") if level else x)  # [B, width, h, w], by level twice the side before
        return at_least_float32(F.pixel_shuffle(self.last(F.relu(x)), self.patch))


class SoftReconstruction(NamedTuple):
    mu: Tensor  # [B, C, H, W], of the logit-Laplace distribution of pixels
    log_scale: Tensor  # [B, C, H, W], ln b of that distribution
    logits: Tensor  # [B, codes, h, w]


class DiscreteAutoencoder(nn.Module):
    """Images in [-1, 1] to codes [B, h, w] and back; trained on codes that are drawn softly by Gumbel-softmax."""

    def __init__(self, shape: FeatureShape, codes: int, initial: int):
        super().__init__()
        self.size, self.codes, self.channels = shape.size, codes, shape.channels
        height, width = (-(-side // shape.factor) for side in shape.size)
        self.shape = (initial, height, width)  # of the vectors of an image
        self.encoder = Encoder(shape, codes)
        self.decoder = Decoder(shape, codes, initial)

    def tokenise(self, image: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, h, w], the most probable codes."""
        return self.encoder(squeeze(image)).argmax(1)

    def detokenise(self, index: Tensor) -> Tensor:
        """[B, h, w] -> [B, C, H, W] in [-1, 1], of mu alone."""
        vectors = F.embedding(index, self.vectors()) + self.decoder.first.bias  # [B, h, w, initial]
        mu, _ = self._split(self.decoder.expand(vectors.movedim(-1, 1)))
        return unsqueeze(mu)

    def vectors(self) -> Tensor:
        """[codes, initial], what the decoder makes of each code."""
        return self.decoder.first.weight[:, :, 0, 0].T

    def forward(self, image: Tensor, temperature: Tensor | float) -> SoftReconstruction:
        """By the global generator."""
        logits = self.encoder(squeeze(image))  # [B, codes, h, w]
        noise = -torch.empty_like(logits).exponential_().log()  # [B, codes, h, w], Gumbel
        soft = F.softmax((logits + noise) / temperature, 1)
        return SoftReconstruction(*self._split(self.decoder(soft)), logits)

    def _split(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self.size
        mu, log_scale = maps[..., :height, :width].chunk(2, 1)  # [B, C, H, W] each
        return mu, log_scale


def squeeze(image: Tensor, eps: float = 0.1) -> Tensor:
    """Pixels in [-1, 1] -> [eps, 1 - eps], where the logit-Laplace density is finite (Ramesh 2021, A.3)."""
    return (1 - 2 * eps) * (image + 1) / 2 + eps


def unsqueeze(mu: Tensor, eps: float = 0.1) -> Tensor:
    """The mean mu of the logits -> pixels in [-1, 1] (Ramesh 2021, A.3)."""
    return 2 * ((torch.sigmoid(mu) - eps) / (1 - 2 * eps)).clamp(0, 1) - 1
