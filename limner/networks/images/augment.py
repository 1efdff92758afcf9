"""Adaptive discriminator augmentation: augmentations that do not leak, as each has a probability below 1.

Karras 2020b, "Training Generative Adversarial Networks with Limited Data": pixel blitting, geometry and colours of
appendix B ("bgc"), in that order. Uses torch's global generator.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.images.resample import upfirdn2d

# The low-pass filter of the symlet with six vanishing moments (Daubechies 1992). Its even shifts are orthonormal,
# so upsampling and then downsampling by it is the identity.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
EDGE = 3  # pixels that the filter reaches beyond an image, at its own resolution
LUMA = 3**-0.5  # each colour's part of the unit vector along grey


# ---- matrices, one an image: [B] numbers -> [B, 3, 3] on (x, y, 1) or [B, 4, 4] on (r, g, b, 1)


def rows(*entries: list[Tensor | float]) -> Tensor:
    """A matrix from its entries, each a number or one number an image."""
    like = next(e for row in entries for e in row if isinstance(e, Tensor))
    full = [torch.as_tensor(e, dtype=like.dtype, device=like.device) for row in entries for e in row]
    return torch.stack([e.expand(len(like)) for e in full], dim=1).unflatten(1, (len(entries), -1))


def translate2d(x: Tensor, y: Tensor) -> Tensor:
    return rows([1, 0, x], [0, 1, y], [0, 0, 1])


def scale2d(x: Tensor, y: Tensor) -> Tensor:
    return rows([x, 0, 0], [0, y, 0], [0, 0, 1])


def rotate2d(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return rows([cos, -sin, 0], [sin, cos, 0], [0, 0, 1])


def shift3d(by: Tensor) -> Tensor:
    return rows([1, 0, 0, by], [0, 1, 0, by], [0, 0, 1, by], [0, 0, 0, 1])


def scale3d(by: Tensor) -> Tensor:
    return rows([by, 0, 0, 0], [0, by, 0, 0], [0, 0, by, 0], [0, 0, 0, 1])


def _grey(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The projection on the grey axis, on what is across it, and on the constant: [4, 4] each."""
    axis = like.new_tensor([LUMA, LUMA, LUMA, 0.0])
    one = torch.diag(like.new_tensor([0.0, 0.0, 0.0, 1.0]))
    along = torch.outer(axis, axis)
    return along, torch.eye(4, dtype=like.dtype, device=like.device) - one - along, one


def flip_luma(flip: Tensor) -> Tensor:
    """Luma inverted where ``flip`` is 1: a Householder reflection of the grey axis."""
    along, across, one = _grey(flip)
    return (1 - 2 * flip)[:, None, None] * along + across + one


def rotate_hue(angle: Tensor) -> Tensor:
    """A rotation about the grey axis (Rodrigues)."""
    along, across, one = _grey(angle)
    crossed = LUMA * angle.new_tensor([[0, -1, 1, 0], [1, 0, -1, 0], [-1, 1, 0, 0], [0, 0, 0, 0]])
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return along + cos * across + sin * crossed + one


def saturate(by: Tensor) -> Tensor:
    """The component orthogonal to the grey axis, times ``by``."""
    along, across, one = _grey(by)
    return along + by[:, None, None] * across + one


# ---- which images are changed, and how


def _sometimes(matrix: Tensor, chance: float) -> Tensor:
    """``matrix`` with probability ``chance`` for each image, else the identity."""
    chosen = torch.rand(len(matrix), device=matrix.device) < chance
    return torch.where(chosen[:, None, None], matrix, torch.eye(matrix.shape[1], device=matrix.device))


def _draws(n: int, device: Any) -> tuple[Callable[[float, float], Tensor], Callable[[], Tensor]]:
    """Functions that give one number an image: uniform from low to high, and normal."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, device=device)

    return uniform, partial(torch.randn, n, device=device)


def geometry(n: int, height: int, width: int, chance: float, mirror: bool, device: Any = "cpu") -> Tensor:
    """[n, 3, 3]: maps from pixels of the result to those of the image, relative to its centre, in the paper's order."""
    uniform, normal = _draws(n, device)
    g = torch.eye(3, device=device).expand(n, 3, 3)
    if mirror:
        sign = 1 - 2 * uniform(0, 2).floor()
        g = g @ _sometimes(scale2d(sign, torch.ones_like(sign)), chance)
    g = g @ _sometimes(rotate2d(math.pi / 2 * uniform(0, 4).floor()).round(), chance)  # quarter turns
    whole = translate2d((uniform(-0.125, 0.125) * width).round(), (uniform(-0.125, 0.125) * height).round())
    g = g @ _sometimes(whole, chance)
    size = (0.2 * normal()).exp2()
    g = g @ _sometimes(scale2d(1 / size, 1 / size), chance)
    either = 1 - (1 - chance) ** 0.5  # of each of two rotations, so that the probability of any is ``chance``
    g = g @ _sometimes(rotate2d(uniform(-math.pi, math.pi)), either)
    stretch = (0.2 * normal()).exp2()
    g = g @ _sometimes(scale2d(1 / stretch, stretch), chance)
    g = g @ _sometimes(rotate2d(uniform(-math.pi, math.pi)), either)
    return g @ _sometimes(translate2d(0.125 * width * normal(), 0.125 * height * normal()), chance)


def colours(n: int, chance: float, device: Any = "cpu", grey: bool = False) -> Tensor:
    """[n, 4, 4] on (r, g, b, 1) in [-1, 1]: brightness, contrast, luma flip, hue, saturation, in that order.

    ``grey`` omits the last two, which do not change grey images.
    """
    uniform, normal = _draws(n, device)
    c = _sometimes(shift3d(0.2 * normal()), chance)
    c = _sometimes(scale3d((0.5 * normal()).exp2()), chance) @ c
    c = _sometimes(flip_luma(uniform(0, 2).floor()), chance) @ c
    if not grey:
        c = _sometimes(rotate_hue(uniform(-math.pi, math.pi)), chance) @ c
        c = _sometimes(saturate(normal().exp2()), chance) @ c
    return c


# ---- the images themselves


class _GridSample(torch.autograd.Function):
    """``grid_sample`` with second derivatives, which R1 needs. It is linear in x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = x.shape
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        return _GridSampleAdjoint.apply(slope, *ctx.saved_tensors, ctx.shape), None


class _GridSampleAdjoint(torch.autograd.Function):
    """The adjoint of ``_GridSample``."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        of_x_alone = [True, False]
        adjoint = torch.ops.aten.grid_sampler_2d_backward
        return adjoint(slope.contiguous(), slope.new_zeros(shape), grid, 0, 0, False, of_x_alone)[0]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        return _GridSample.apply(slope, *ctx.saved_tensors), None, None


def _doubler(size: int, beyond: int, like: Tensor) -> Tensor:
    """[2 (size + 2 beyond), size]: a row of pixels, padded by reflection and upsampled by sym6."""
    index = _fold(torch.arange(-beyond, size + beyond, device=like.device), size, 0)
    rows = torch.eye(size, dtype=like.dtype, device=like.device)[:, index][None, None]
    taps = like.new_tensor(SYM6)[None] / sum(SYM6)
    return upfirdn2d(rows, taps, up=2, pad=(6, 5, 0, 0), gain=2)[0, 0, ::2].T


def _halver(size: int, like: Tensor) -> Tensor:
    """[size, 2 (size + 2 EDGE)]: downsampling by sym6 of a row that extends EDGE pixels beyond its ends."""
    wide = size + 2 * EDGE
    taps = like.new_tensor(SYM6)[None].flip(1) / sum(SYM6)
    rows = torch.eye(2 * wide, dtype=like.dtype, device=like.device)[None, None]
    return upfirdn2d(rows, taps, pad=(5, 5, 0, 0))[0, 0, :, ::2].T[EDGE:-EDGE]  # of [wide, 2 wide]


def _fold(q: Tensor, size: int, beyond: int) -> Tensor:
    """Pixel coordinates more than ``beyond`` outside the image, reflected about the first and last pixel."""
    last = size - 1
    folded = last - ((q % (2 * last)) - last).abs()
    return torch.where((q < -beyond) | (q > last + beyond), folded, q)


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """[B, C, H, W] resampled by maps [B, 3, 3] of pixels relative to the centre; reflected beyond its edges.

    Upsampled, sampled and downsampled by sym6, so that integer translations and quarter turns lose almost nothing.
    """
    height, width = x.shape[2:]
    matrix = matrix.to(x.dtype)
    # Padded as far as integer translations reach; coordinates farther out are reflected.
    far = [EDGE + 1 + size // 8 for size in (height, width)]
    x = _doubler(height, far[0] + EDGE, x) @ x @ _doubler(width, far[1] + EDGE, x).T  # [B, C, H', W']

    def coordinates(size: int) -> Tensor:  # of the upsampled pixels, in pixels from the centre
        return torch.arange(2 * (size + 2 * EDGE), dtype=x.dtype, device=x.device) / 2 - EDGE - (size - 1) / 2

    def on_grid(q: Tensor, size: int, far: int) -> Tensor:  # pixels from the centre -> [-1, 1] over H' or W'
        q = _fold(q + (size - 1) / 2, size, far) + far + EDGE
        return (2 * q + 0.5) / (size + 2 * (far + EDGE)) - 1  # sym6 is shifted by half an upsampled pixel

    down, across = torch.meshgrid(coordinates(height), coordinates(width), indexing="ij")
    here = torch.stack([across, down, torch.ones_like(down)], dim=-1)  # [h, w, 3]
    there = torch.einsum("bij,hwj->ibhw", matrix[:, :2], here)  # (x, y)
    grid = torch.stack([on_grid(there[0], width, far[1]), on_grid(there[1], height, far[0])], dim=-1)
    x = _GridSample.apply(x, grid)  # [B, C, 2(H + 2 EDGE), 2(W + 2 EDGE)]
    return _halver(height, x) @ x @ _halver(width, x).T


def recolour(x: Tensor, matrix: Tensor) -> Tensor:
    """[B, C, H, W] with its colours mapped by [B, 4, 4]; grey by the mean over three equal channels; alpha stays."""
    matrix = matrix.to(x.dtype)
    if x.shape[1] == 1:
        gain, shift = matrix[:, :3, :3].sum((1, 2)) / 3, matrix[:, :3, 3].mean(1)
        return x * gain[:, None, None, None] + shift[:, None, None, None]
    mixed = torch.einsum("bij,bjhw->bihw", matrix[:, :3, :3], x[:, :3]) + matrix[:, :3, 3, None, None]
    return torch.cat([mixed, x[:, 3:]], dim=1)


def augment(x: Tensor, chance: float, mirror: bool = False) -> Tensor:
    """[B, C, H, W] in [-1, 1] -> the same shape, each change with probability ``chance``; twice differentiable."""
    if not chance:
        return x
    n, channels, height, width = x.shape
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        g = geometry(n, height, width, chance, mirror, x.device)
        c = colours(n, chance, x.device, grey=channels == 1)
        moved = (g != torch.eye(3, device=x.device)).any(2).any(1).nonzero().flatten()
        if len(moved):  # the others are not resampled
            x = x.index_copy(0, moved, warp(x[moved], g[moved]))
        return recolour(x, c)


# ---- how strong


def adjusted(chance: float, overfit: float, images: int, target: float, period: float, most: float) -> float:
    """The next probability: up by images / period if ``overfit`` is above its target, else down (section 3.1)."""
    step = images / period * ((overfit > target) - (overfit < target))
    return min(max(chance + step, 0.0), most)


class Controller(nn.Module):
    """Adapts the probability of each augmentation to how much the discriminator overfits.

    The measure is r_t, the mean sign of its scores of real images, over ``every`` batches. The probability needs at
    least ``period`` images from 0 to 1.
    """

    chance: Tensor
    signs: Tensor
    images: Tensor
    batches: Tensor

    def __init__(self, start: float, target: float, period: float, most: float, every: int = 4):
        super().__init__()
        self.target, self.period, self.most, self.every = target, period, most, every
        self.register_buffer("chance", torch.tensor(start))
        for name in ("signs", "images", "batches"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def follow(self, scores: Tensor) -> None:
        """Update by the discriminator's scores [B] of a batch of real images."""
        self.signs += scores.sign().sum()
        self.images += len(scores)
        self.batches += 1
        if int(self.batches) < self.every:
            return
        overfit = float(self.signs / self.images)
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        images = int(self.images) * world  # of all processes, whose probabilities are averaged
        self.chance.fill_(adjusted(float(self.chance), overfit, images, self.target, self.period, self.most))
        for gathered in (self.signs, self.images, self.batches):
            gathered.zero_()
