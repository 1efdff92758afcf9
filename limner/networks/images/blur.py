"""Blur kernels and their convolution with mirrored edges (Wang 2021, "Real-ESRGAN", section 3)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Tensor  # [n, n] in float64, n odd, with sum 1


def gaussian_kernel(
    side: int, sigma_x: float, sigma_y: float, theta: float = 0.0, shape: float = 1.0
) -> Kernel:
    """exp(-(x^T S^-1 x)^shape / 2), S of deviations ``sigma_x`` and ``sigma_y`` in pixels, turned by ``theta`` radians.

    ``shape`` 1 is a Gaussian; others are generalised ones.
    """
    return _with_sum_1((-0.5 * _distance(side, sigma_x, sigma_y, theta) ** shape).exp())


def plateau_kernel(
    side: int, sigma_x: float, sigma_y: float, theta: float = 0.0, shape: float = 1.0
) -> Kernel:
    """1 / (1 + (x^T S^-1 x)^shape), flat in the middle."""
    return _with_sum_1(1 / (1 + _distance(side, sigma_x, sigma_y, theta) ** shape))


def sinc_kernel(side: int, cutoff: float) -> Kernel:
    """The circular low-pass filter of ``cutoff`` radians a pixel, which rings: w J1(w r) / (2 pi r)."""
    x, y = _grid(side)
    radius = torch.hypot(x, y)
    ring = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1e-9))
    return _with_sum_1(torch.where(radius > 0, ring, cutoff**2 / (4 * math.pi)))


def blurred(image: Tensor, kernel: Kernel) -> Tensor:
    """[C, H, W] of any size, convolved with the kernel; edges are mirrored about the edge pixel."""
    pad, (height, width) = len(kernel) // 2, image.shape[-2:]
    rows, columns = (_mirrored(side, pad).to(image.device) for side in (height, width))
    around = image[:, rows][:, :, columns][:, None]  # [C, 1, H + 2 pad, W + 2 pad]
    return F.conv2d(around, kernel.flip(0, 1)[None, None].to(image))[:, 0]


def _mirrored(length: int, pad: int) -> Tensor:
    """[length + 2 pad] indices, reflected at both ends as often as needed."""
    places = torch.arange(-pad, length + pad).remainder(max(1, 2 * (length - 1)))
    return torch.minimum(places, 2 * (length - 1) - places)


def _grid(side: int) -> tuple[Tensor, Tensor]:
    """x and y [side, side] in pixels from the middle."""
    line = torch.arange(side, dtype=torch.float64) - side // 2
    return line[None].expand(side, side), line[:, None].expand(side, side)


def _distance(side: int, sigma_x: float, sigma_y: float, theta: float) -> Tensor:
    """x^T S^-1 x [side, side], S = R diag(sigma_x^2, sigma_y^2) R^T."""
    x, y = _grid(side)
    along = math.cos(theta) * x + math.sin(theta) * y
    across = math.cos(theta) * y - math.sin(theta) * x
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _with_sum_1(kernel: Tensor) -> Tensor:
    return kernel / kernel.sum()
