"""Norms over a whole picture, which can be given their statistics, so that a picture may be computed tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limner.networks.layers import at_least_float32

SMALL = 256  # pixels of maps that a CPU normalises by channels faster in rows, copies included

# mean and variance (by 1/N) of each group of channels, float64 [B, G]: where maps are nearly constant, a mean of
# float32 is off by much of their deviation
Moments = tuple[Tensor, Tensor]


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
        each = self.num_channels // self.num_groups
        mean, factor = (v.repeat_interleave(each, 1) for v in (mean, (variance + self.eps).rsqrt()))  # [B, C]
        near = mean.to(x.dtype)  # what it rounds off is subtracted with the offset
        offset = (near.double() - mean) * factor
        for times, plus in ((self.weight, self.bias), (gain, shift)):
            if times is not None:
                factor, offset = factor * times, offset * times
            if plus is not None:
                offset = offset + plus
        offset, near, factor = (v.to(x.dtype)[:, :, None, None] for v in (offset, near, factor))
        return torch.addcmul(offset, x - near, factor)

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
        """[B, C, 1, 1], each group's mean, roughly; no gradient runs through it, since the norm does not depend on it.

        PyTorch's variance in channels_last is a difference of squares, so without it a white wall would become noise.
        """
        mean = x.detach().mean((2, 3), keepdim=True)  # [B, C, 1, 1]
        each = self.num_channels // self.num_groups
        return mean if each == 1 else mean.unflatten(1, (-1, each)).mean(2).repeat_interleave(each, 1)


class InstanceNorm(GroupNorm):
    """Instance norm (Ulyanov 2016): each channel of each picture by itself; one pixel becomes 0.

    ``affine``: with a weight and a bias for each channel, as fast style transfer has it and CycleGAN does not.
    """

    def __init__(self, channels: int, affine: bool = False, eps: float = 1e-5):
        super().__init__(channels, channels, eps, affine)


def moments(x: Tensor, groups: int) -> Moments:
    """The statistics of [B, C, H, W] that a norm takes itself."""
    grouped = at_least_float32(x).reshape(len(x), groups, -1)
    level = grouped[..., :1]  # float32 holds differences from it exactly where maps are nearly constant
    variance, mean = torch.var_mean(grouped - level, 2, correction=0)
    return level[..., 0].double() + mean.double(), variance.double()


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
