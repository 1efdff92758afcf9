"""How given pictures are made from wanted ones: small, blurred, compressed, grey, with holes, or as photographs age.

``real`` is the second-order degradation of Wang 2021, "Real-ESRGAN": two rounds of blur, resizing, noise and JPEG.
Each picture's numbers come from its own stream of ``Draws``, in training too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from limner.core import Draws
from limner.networks.images.bicubic import bicubic
from limner.networks.images.blur import Kernel, blurred, gaussian_kernel, plateau_kernel, sinc_kernel
from limner.networks.images.channels import within

# What is made of a wanted picture; bicubic4 is four times smaller and enlarged again.
Degradation = Literal["bicubic", "bicubic4", "real", "blur", "grey", "jpeg", "holes"]


def given_channels(kind: Degradation, channels: int) -> int:
    """The channels of the given picture: grey has one, unless alpha has to stay."""
    return 1 if kind == "grey" and channels < 4 else channels


@torch.no_grad()
def degrade(image: Tensor, kind: Degradation, draws: Draws, scale: int = 1) -> Tensor:
    """[B, C, H, W] in [-1, 1] -> [B, C', H/scale, W/scale] in [-1, 1], as the given pictures of these wanted ones."""
    if kind == "bicubic":
        return within(bicubic(image, 1 / scale))
    if kind == "bicubic4":
        height, width = image.shape[-2:]
        return within(bicubic(bicubic(image, 1 / 4), 4)[..., :height, :width])
    if kind == "grey":
        return _grey(image)
    streams = [stream for stream, *_ in draws.streams]
    by_kind = {"real": _real, "blur": _blur, "jpeg": _jpeg, "holes": _holes}
    made = [by_kind[kind](one, g, scale) for one, g in zip(image.cpu().float(), streams, strict=True)]
    return within(torch.stack(made)).to(image)


def _grey(image: Tensor) -> Tensor:
    """Luminance (BT.601); of premultiplied RGBA three equal colours, and the alpha as it is."""
    if image.shape[1] == 1:
        return image
    grey = (image[:, :3] * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    return grey if image.shape[1] == 3 else torch.cat([grey.expand(-1, 3, -1, -1), image[:, 3:]], dim=1)


# ---- one picture [C, H, W] in [-1, 1], with the generator of its stream


def _between(g: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=g))


def _choose(g: Generator, weights: Sequence[float]) -> int:
    return int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=g))


def _blur(image: Tensor, g: Generator, scale: int) -> Tensor:
    """A Gaussian of 1 to 3 pixels."""
    sigma = _between(g, 1.0, 3.0)
    return blurred(image, gaussian_kernel(2 * math.ceil(3 * sigma) + 1, sigma, sigma))


def _jpeg(image: Tensor, g: Generator, scale: int) -> Tensor:
    """JPEG of a quality of 5 to 40."""
    return 2 * compressed((image + 1) / 2, round(_between(g, 5, 40))) - 1


def _holes(image: Tensor, g: Generator, scale: int) -> Tensor:
    """One to four rectangles of a fifth to a half of each side, in mid grey, or transparent where there is alpha."""
    image, (height, width) = image.clone(), image.shape[-2:]
    for _ in range(1 + _choose(g, (1, 1, 1, 1))):
        h, w = (max(1, round(_between(g, 0.2, 0.5) * side)) for side in (height, width))
        top, left = (int(_between(g, 0, side + 1 - s)) for side, s in ((height, h), (width, w)))
        image[:, top : top + h, left : left + w] = -1.0 if len(image) == 4 else 0.0
    return image


def compressed(image: Tensor, quality: int) -> Tensor:
    """[C, H, W] in [0, 1] after JPEG by Pillow; alpha, which JPEG has not, stays."""
    colours = (image[:3] * 255).round().clamp(0, 255).byte()
    array = colours.permute(1, 2, 0).numpy() if len(image) > 1 else colours[0].numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "jpeg", quality=quality)
    with Image.open(file) as picture:
        values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    again = values.reshape(image.shape[1], image.shape[2], -1).permute(2, 0, 1) / 255
    return torch.cat([again, image[3:]])


# ---- Real-ESRGAN (Wang 2021, section 3; the numbers are those of its published x4plus settings)

# Shares of Gaussian, generalised and plateau kernels; each isotropic, then anisotropic.
KERNELS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
SINC = 0.1  # share of sinc kernels
SIDES = range(7, 22, 2)  # of kernels, in pixels
SHAPES = (0.5, 4.0), (1.0, 2.0)  # exponents of generalised and of plateau kernels
GREY_NOISE = 0.4  # share of noise that is equal in all colours
QUALITY = 30, 95  # of JPEG


def _real(image: Tensor, g: Generator, scale: int) -> Tensor:
    """Two rounds of blur, resizing, noise and JPEG, with a last sinc filter; the last JPEG before or after it."""
    height, width = (side // scale for side in image.shape[-2:])
    size = image.shape[-2] / scale, image.shape[-1] / scale
    x = blurred((image + 1) / 2, random_kernel(g, (0.2, 3.0)))
    x = _resized(x, _scaled(g, (image.shape[-2], image.shape[-1]), (0.2, 0.7, 0.1), (0.15, 1.5)), g)
    x = _noisy(x, g, gaussian=(1, 30), poisson=(0.05, 3.0))
    x = compressed(x, round(_between(g, *QUALITY)))
    if _between(g, 0, 1) < 0.8:
        x = blurred(x, random_kernel(g, (0.2, 1.5)))
    x = _resized(x, _scaled(g, size, (0.3, 0.4, 0.3), (0.3, 1.2)), g)
    x = _noisy(x, g, gaussian=(1, 25), poisson=(0.05, 2.5))
    last = None
    if _between(g, 0, 1) < 0.8:
        last = sinc_kernel(SIDES[_choose(g, [1] * len(SIDES))], _between(g, math.pi / 3, math.pi))
    quality = round(_between(g, *QUALITY))
    if early := _between(g, 0, 1) < 0.5:
        x = compressed(x, quality)
    x = _resized(x, (height, width), g)
    x = x if last is None else blurred(x, last).clamp(0, 1)
    return 2 * (x if early else compressed(x, quality)) - 1


def random_kernel(g: Generator, sigmas: tuple[float, float]) -> Kernel:
    """A blur kernel of a random kind, side, width and direction, with deviations in ``sigmas`` pixels."""
    side = SIDES[_choose(g, [1] * len(SIDES))]
    if _between(g, 0, 1) < SINC:
        return sinc_kernel(side, _between(g, math.pi / (3 if side < 13 else 5), math.pi))
    kind, anisotropic = divmod(_choose(g, KERNELS), 2)
    sigma = _between(g, *sigmas)
    other, theta = (_between(g, *sigmas), _between(g, -math.pi, math.pi)) if anisotropic else (sigma, 0.0)
    if kind == 0:
        return gaussian_kernel(side, sigma, other, theta)
    low, high = SHAPES[kind - 1]
    shape = _between(g, low, 1) if _between(g, 0, 1) < 0.5 else _between(g, 1, high)
    make = gaussian_kernel if kind == 1 else plateau_kernel
    return make(side, sigma, other, theta, shape)


def _scaled(
    g: Generator, size: tuple[float, float], weights: tuple[float, ...], scales: tuple[float, float]
) -> tuple[int, int]:
    """``size`` enlarged, shrunk or kept, by ``weights`` in this order."""
    ends = ((1.0, scales[1]), (scales[0], 1.0), (1.0, 1.0))
    by = _between(g, *ends[_choose(g, weights)])
    return max(1, int(size[0] * by)), max(1, int(size[1] * by))


def _resized(image: Tensor, size: tuple[int, int], g: Generator) -> Tensor:
    """By area, bilinear or bicubic and without antialias, as the published degradation does; clamped to [0, 1]."""
    mode = ("area", "bilinear", "bicubic")[_choose(g, (1, 1, 1))]
    return F.interpolate(image[None], size, mode=mode)[0].clamp(0, 1)


def _noisy(
    image: Tensor, g: Generator, gaussian: tuple[float, float], poisson: tuple[float, float]
) -> Tensor:
    """Gaussian noise of a deviation in 1/255, or Poisson noise times a factor; colours alone, clamped to [0, 1]."""
    colours = image[:3]
    by_poisson, alike = _between(g, 0, 1) < 0.5, _between(g, 0, 1) < GREY_NOISE
    if by_poisson:
        shown = _grey(colours[None])[0] if alike else colours
        shown = (shown.clamp(0, 1) * 255).round() / 255
        levels = 2 ** math.ceil(math.log2(max(2, len(shown.unique()))))
        noise = _between(g, *poisson) * (torch.poisson(shown * levels, generator=g) / levels - shown)
    else:
        shape = (1, *colours.shape[1:]) if alike else colours.shape
        noise = _between(g, *gaussian) / 255 * torch.randn(shape, generator=g)
    return torch.cat([(colours + noise).clamp(0, 1), image[3:]])
