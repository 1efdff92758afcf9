"""Norms over a whole picture, which can be given their statistics, so that a picture may be computed tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limner.networks.layers import at_least_float32

SMALL = 256  # pixels of maps that a CPU normalises by channels faster in rows, copies included

Moments = tuple[Tensor, Tensor]  # mean and variance (by 1/N) [B, G] of each group of channels


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu 2018) whose statistics can come from elsewhere (``statistics_from``); equal in train and eval."""

    source: Callable[[Tensor, int], Moments] | None = None  # (x, groups) -> its statistics; None: of x itself

    def forward(self, x: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """[B, C, H, W] normalised; then times ``gain`` plus ``shift``, [B, C], where a condition gives those."""
        if self.source is None:
            y = self.normalise(x)  # [B, C, H, W]
            if gain is None:
                return y
            gain = gain[:, :, None, None]
            return y * gain if shift is None else torch.addcmul(shift[:, :, None, None], y, gain)
        mean, variance = self.source(x, self.num_groups)  # [B, G]
        factor = (variance + self.eps).rsqrt()
        each = self.num_channels // self.num_groups
        factor, offset = (v.repeat_interleave(each, 1) for v in (factor, -mean * factor))  # [B, C]
        for times, plus in ((self.weight, self.bias), (gain, shift)):
            if times is not None:
                factor, offset = factor * times, offset * times
            if plus is not None:
                offset = offset + plus
        return torch.addcmul(offset[:, :, None, None].to(x.dtype), x, factor[:, :, None, None].to(x.dtype))

    def normalise(self, x: Tensor) -> Tensor:
        """By its own statistics. Of few channels a group a CPU is slow, in small maps and where it learns in bf16."""
        few = x.device.type == "cpu" and self.num_channels < 16 * self.num_groups
        small = few and x.shape[2] * x.shape[3] <= SMALL
        wide = torch.promote_types(x.dtype, torch.float32) if small or (few and x.requires_grad) else x.dtype
        last = small and x.is_contiguous(memory_format=torch.channels_last)
        y = x.to(wide, memory_format=torch.contiguous_format if last else torch.preserve_format)
        y = torch.group_norm(y - self.level(y), self.num_groups, self.weight, self.bias, self.eps)
        return y.to(x.dtype, memory_format=torch.channels_last if last else torch.preserve_format)

    def level(self, x: Tensor) -> Tensor:
        """[B, C, 1, 1] a value near each group's mean where its maps are nearly constant; no gradient runs through it.

        PyTorch's variance in channels_last is a difference of squares, so without it a white wall would become noise.
        """
        corner = x.detach()[..., :1, :1]  # [B, C, 1, 1]
        each = self.num_channels // self.num_groups
        return corner if each == 1 else corner.unflatten(1, (-1, each)).mean(2).repeat_interleave(each, 1)


class InstanceNorm(GroupNorm):
    """Instance norm (Ulyanov 2016): each channel of each picture by itself; one pixel becomes 0.

    ``affine``: with a weight and a bias for each channel, as fast style transfer has it and CycleGAN does not.
    """

    def __init__(self, channels: int, affine: bool = False, eps: float = 1e-5):
        super().__init__(channels, channels, eps, affine)


def moments(x: Tensor, groups: int) -> Moments:
    """The statistics of [B, C, H, W] that a norm takes itself."""
    variance, mean = torch.var_mean(at_least_float32(x).reshape(len(x), groups, -1), 2, correction=0)
    return mean, variance


def picture_norms(network: nn.Module) -> list[GroupNorm]:
    """The norms of a network that see the whole picture."""
    return [module for module in network.modules() if isinstance(module, GroupNorm)]


@contextmanager
def statistics_from(network: nn.Module, source: Callable[[Tensor, int], Moments]) -> Iterator[None]:
    """Each norm asks ``source`` for its statistics, in the order in which the network calls them."""
    norms = picture_norms(network)
    try:
        for norm in norms:
            norm.source = source
        yield
    finally:
        for norm in norms:
            norm.source = None
