"""Small layers, initialisations and time features that several networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from limner.networks.checks import SizeError


class GroupNorm(nn.GroupNorm):
    """As PyTorch's, which has no forward-mode derivative in channels_last: there it is written out."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or forward_ad.unpack_dual(x).tangent is None:
            return super().forward(x)
        grouped = x.unflatten(1, (self.num_groups, -1))  # [B, G, C/G, H, W]
        variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0, keepdim=True)
        h = ((grouped - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)  # [B, C, H, W]
        return torch.addcmul(self.bias[:, None, None], h, self.weight[:, None, None])


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer, made to give nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def init_xavier_all(module: nn.Module, gain: float = 1.0) -> None:
    """Every layer's weights uniform, as Glorot 2010 has them, times ``gain``; no offsets. Zeros stay zeros."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            if part.weight.is_meta or part.weight.any():
                nn.init.xavier_uniform_(part.weight, gain)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def init_xavier(module: nn.Module) -> None:
    """The start of a transformer that suits every width: Glorot's matrices, no biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


def check_levels(widths: Sequence[int], blocks: Sequence[int]) -> None:
    """Raises SizeError unless every level has both."""
    if len(widths) != len(blocks):
        raise SizeError(
            f"{len(widths)} levels have widths and {len(blocks)} have blocks: give --model.widths and --model.blocks "
            "as many numbers"
        )


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """The image with its last row and column repeated until both sides divide by ``multiple``."""
    height, width = x.shape[-2:]
    if height % multiple or width % multiple:
        x = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    return x


def time_features(t: Tensor, width: int, longest: float = 1.0, shortest: float = 0.03) -> Tensor:
    """[B] times in [0, 1] -> [B, width] cosines and sines of geometric wavelengths."""
    steps = torch.linspace(0, 1, width // 2, device=t.device)
    frequency = 2 * math.pi / (longest * (shortest / longest) ** steps) / 4
    angle = t.float()[:, None] * frequency  # [B, width/2]
    return torch.cat([angle.cos(), angle.sin()], dim=1)  # [B, width]


def sinusoids(t: Tensor, width: int, original: bool = False) -> Tensor:
    """[B] times, in steps -> [B, width] cosines and then sines, of wavelengths from 2 pi to almost 20,000 pi.

    ``original``: sines and then cosines, and the last wavelength is 20,000 pi (Ho 2020; Karras 2022).
    """
    half = width // 2
    share = torch.arange(half, device=t.device, dtype=torch.float32) / max(half - original, 1)
    angle = t.float()[:, None] * torch.exp(-math.log(10_000) * share)  # [B, width/2]
    parts = [angle.sin(), angle.cos()] if original else [angle.cos(), angle.sin()]
    return torch.cat(parts, dim=1)  # [B, width]
