"""Random views of images [B, C, H, W] in [-1, 1], drawn for each image by torch's global generator."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def uniform(x: Tensor, low: float, high: float) -> Tensor:
    """[B, 1, 1, 1], one number an image."""
    return low + (high - low) * torch.rand(len(x), 1, 1, 1, device=x.device)


def sometimes(x: Tensor, changed: Tensor, chance: float) -> Tensor:
    """``changed`` for a share of the images, ``x`` for the others."""
    return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < chance, changed, x)


def warp(x: Tensor, matrix: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """x resampled by affine maps [B, 2, 3] from the result's coordinates to those of x, both in [-1, 1]."""
    height, width = size or (x.shape[-2], x.shape[-1])
    grid = F.affine_grid(matrix, [len(x), x.shape[1], height, width], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def viewpoint(
    x: Tensor, turn: float = 15.0, zoom: float = 0.15, shift: float = 0.1, shear: float = 0.1
) -> Tensor:
    """Rotation by up to ``turn`` degrees, scaling, translation by a share of the side, shear."""
    angle = uniform(x, -turn, turn).flatten() * math.pi / 180
    scale = torch.exp(uniform(x, -zoom, zoom).flatten())
    lean = uniform(x, -shear, shear).flatten()
    across, down = (2 * uniform(x, -shift, shift).flatten() for _ in range(2))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    aspect = x.shape[-2] / x.shape[-1]  # a rotation of pixels is not one of these coordinates
    rows = torch.stack([cos, (lean - sin) * aspect, across, sin / aspect, cos, down], dim=1)
    return warp(x, rows.unflatten(1, (2, 3)))


def crop(
    x: Tensor, size: tuple[int, int], least: float = 0.4, most: float = 1.0, ratio: float = 4 / 3
) -> Tensor:
    """A random crop of ``least`` to ``most`` of the area, with an aspect ratio up to ``ratio``, resized to ``size``."""
    area = uniform(x, least, most).flatten()
    aspect = torch.exp(uniform(x, -math.log(ratio), math.log(ratio)).flatten())
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    across = (1 - wide) * uniform(x, -1, 1).flatten()
    down = (1 - high) * uniform(x, -1, 1).flatten()
    none = torch.zeros_like(wide)
    rows = torch.stack([wide, none, across, none, high, down], dim=1)
    return warp(x, rows.unflatten(1, (2, 3)), size)


def mirror(x: Tensor) -> Tensor:
    """Half of the images mirrored."""
    return sometimes(x, x.flip(-1), 0.5)


def premultiplied(x: Tensor) -> Tensor:
    """Colours of RGBA clipped to their alpha, as premultiplied images need."""
    return torch.cat([torch.minimum(x[:, :3], x[:, 3:]), x[:, 3:]], dim=1) if x.shape[1] == 4 else x


def light(x: Tensor, strength: float = 0.4) -> Tensor:
    """Random gamma, contrast and brightness; alpha stays."""
    colours, alpha = x[:, :3], x[:, 3:]  # grey has one colour channel
    y = ((colours + 1) / 2).clamp(min=1e-4) ** torch.exp(uniform(x, -strength, strength))
    mean = y.mean((1, 2, 3), keepdim=True)
    y = (y - mean) * torch.exp(uniform(x, -strength, strength)) + mean + uniform(x, -strength, strength) / 2
    return premultiplied(torch.cat([(2 * y - 1).clamp(-1, 1), alpha], dim=1))


def colour(x: Tensor, strength: float = 0.4) -> Tensor:
    """Random saturation and tint; grey images stay as they are."""
    if x.shape[1] < 3:
        return x
    rgb, rest = x[:, :3], x[:, 3:]
    grey = rgb.mean(1, keepdim=True)
    rgb = grey + (rgb - grey) * torch.exp(uniform(x, -2 * strength, 2 * strength))
    tint = 1 + strength / 2 * (2 * torch.rand(len(x), 3, 1, 1, device=x.device) - 1)
    return premultiplied(torch.cat([((rgb + 1) * tint - 1).clamp(-1, 1), rest], dim=1))


def weather(x: Tensor, noise: float = 0.15, blur: float = 1.2) -> Tensor:
    """Gaussian noise and Gaussian blur, for half of the images each."""
    x = sometimes(x, x + uniform(x, 0, noise) * torch.randn_like(x), 0.5)
    sigma = uniform(x, 0.1, blur)
    radius = min(math.ceil(2 * blur), min(x.shape[-2:]) - 1)
    at = torch.arange(-radius, radius + 1, device=x.device)
    weight = torch.exp(-0.5 * (at / sigma.flatten()[:, None]) ** 2)
    weight = weight / weight.sum(1, keepdim=True)  # [B, K]
    flat = x.flatten(0, 1)[None]  # [1, BC, H, W]: each image has a kernel of its own
    kernel = weight.repeat_interleave(x.shape[1], 0)[:, None]  # [BC, 1, K]
    groups = flat.shape[1]
    flat = F.conv2d(F.pad(flat, (radius,) * 4, mode="reflect"), kernel[:, :, :, None], groups=groups)
    flat = F.conv2d(flat, kernel[:, :, None, :], groups=groups)
    return premultiplied(sometimes(x, flat[0].unflatten(0, x.shape[:2]), 0.5).clamp(-1, 1))


def occlude(x: Tensor, most: float = 0.4) -> Tensor:
    """Cutout for half of the images: a box of up to ``most`` of each side, of one value (DeVries 2017)."""
    height, width = x.shape[-2:]
    high, wide = uniform(x, 0, most), uniform(x, 0, most)
    top, left = uniform(x, 0, 1) * (1 - high), uniform(x, 0, 1) * (1 - wide)
    y = ((torch.arange(height, device=x.device) + 0.5) / height)[:, None]
    z = ((torch.arange(width, device=x.device) + 0.5) / width)[None]
    box = (y > top) & (y < top + high) & (z > left) & (z < left + wide)  # [B, 1, H, W]
    return sometimes(x, torch.where(box, uniform(x, -1, 1), x), 0.5)
