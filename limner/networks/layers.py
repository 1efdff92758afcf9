"""Layers, initialisations and time features that several networks share."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Resample = Literal["", "up", "down"]


def group_norm(width: int, eps: float, least: int = 2) -> nn.GroupNorm:
    """32 groups, or fewer so that each has ``least`` channels: a norm of one would remove the time embedding."""
    groups = next(g for g in range(max(1, min(32, width // least)), 0, -1) if width % g == 0)
    return nn.GroupNorm(groups, width, eps)


def resample(x: Tensor, way: Resample) -> Tensor:
    """Half the size by means of 2x2 pixels, twice the size by nearest neighbours, or as it is."""
    if way == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0) if way == "up" else x


class Down(nn.Module):
    """A 3x3 convolution of stride 2. ``original``: padded at the right and below only (Ho 2020)."""

    def __init__(self, width: int, original: bool):
        super().__init__()
        self.original = original
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=0 if original else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.original else x)  # [B, C, H/2, W/2]


class Up(nn.Module):
    """Nearest-neighbour upsampling by 2, and a 3x3 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(resample(x, "up"))  # [B, C, 2 H, 2 W]


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer with weights and bias 0, so that its output begins as 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def init_xavier_all(module: nn.Module, gain: float = 1.0) -> None:
    """Glorot-uniform weights times ``gain``, biases 0 (Glorot 2010); layers whose weights are all 0 keep them."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            if part.weight.is_meta or part.weight.any():
                nn.init.xavier_uniform_(part.weight, gain)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def init_xavier(module: nn.Module) -> None:
    """Glorot-uniform weights and biases 0 in the linear layers of a transformer."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """[..., H, W] with the last row and column repeated until both sides are multiples of ``multiple``."""
    height, width = x.shape[-2:]
    if height % multiple or width % multiple:
        x = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    return x


def at_least_float32(x: Tensor) -> Tensor:
    """float64 stays, whatever is narrower becomes float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def time_features(t: Tensor, width: int, longest: float = 1.0, shortest: float = 0.03) -> Tensor:
    """[B] times in [0, 1] -> [B, width]: cosines, then sines, of geometrically spaced wavelengths."""
    t = at_least_float32(t)
    steps = torch.linspace(0, 1, width // 2, device=t.device, dtype=t.dtype)
    frequency = 2 * math.pi / (longest * (shortest / longest) ** steps) / 4
    angle = t[:, None] * frequency  # [B, width/2]
    return torch.cat([angle.cos(), angle.sin()], dim=1)  # [B, width]


def sinusoids(t: Tensor, width: int, original: bool = False) -> Tensor:
    """[B] times in steps -> [B, width]: cosines, then sines, of wavelengths from 2 pi to almost 20,000 pi.

    ``original``: sines first, and the last wavelength is exactly 20,000 pi (Ho 2020; Karras 2022).
    """
    t, half = at_least_float32(t), width // 2
    exponent = torch.arange(half, device=t.device, dtype=t.dtype) / max(half - original, 1)
    angle = t[:, None] * torch.exp(-math.log(10_000) * exponent)  # [B, width/2]
    parts = [angle.sin(), angle.cos()] if original else [angle.cos(), angle.sin()]
    return torch.cat(parts, dim=1)  # [B, width]
