"""A convolution whose second derivatives cost what the first do; PyTorch's own take several times as long.

PyTorch's formula convolves images with images, group by group. Here the slope by the input is a function of its
own, whose derivatives are again a convolution and the slope of one (as in the code of Karras 2020b).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_by_weight = True


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """For ``torch.autograd.grad`` by images: the slopes by weights, which nobody asked for, cost nothing."""
    global _by_weight
    before, _by_weight = _by_weight, False
    try:
        yield
    finally:
        _by_weight = before


def _slopes(
    slope: Tensor, x: Tensor, weight: Tensor, how: tuple[int, int, int], wanted: list[bool]
) -> list[Tensor | None]:
    """Of the convolution of x with the weight, by x, weight and offset, as far as wanted."""
    stride, padding, groups = how
    return torch.ops.aten.convolution_backward(
        slope, x, weight, [len(weight)], [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups, wanted
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[int, int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return F.conv2d(x, weight, bias, how[0], how[1], 1, how[2])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad[:3]
        by_weight, by_bias = by_weight and _by_weight, by_bias and _by_weight
        if not torch.is_grad_enabled():  # no further derivatives: all at once
            first, second, third = _slopes(slope, x, weight, ctx.how, [by_x, by_weight, by_bias])
            return first, second, third, None
        return (
            _ByInput.apply(slope, weight, x, ctx.how) if by_x else None,
            _slopes(slope, x, weight, ctx.how, [False, True, False])[1] if by_weight else None,
            slope.sum((0, 2, 3)) if by_bias else None,
            None,
        )


class _ByInput(torch.autograd.Function):
    """The slope by x of a convolution; it depends on the shape of x only."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, weight: Tensor, x: Tensor, how: tuple[int, int, int]) -> Tensor:
        ctx.save_for_backward(slope, weight)
        ctx.how = how
        by_x = _slopes(slope, x, weight, how, [True, False, False])[0]
        assert by_x is not None
        return by_x

    @staticmethod
    def backward(ctx: Any, change: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        slope, weight = ctx.saved_tensors
        return (
            conv2d(change, weight, None, *ctx.how) if ctx.needs_input_grad[0] else None,
            _slopes(slope, change, weight, ctx.how, [False, True, False])[1]
            if ctx.needs_input_grad[1]
            else None,
            None,
            None,
        )


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """``torch.nn.functional.conv2d``, to be derived twice."""
    if not torch.is_grad_enabled():
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)
    if torch.is_autocast_enabled(x.device.type):  # which would reach the way there, but not the way back
        kind = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
    return _Convolution.apply(x, weight, bias, (stride, padding, groups))


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` to be derived twice; stride and padding are the same both ways, and there is no dilation."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self.padding, tuple)
        return conv2d(input, self.weight, self.bias, self.stride[0], self.padding[0], self.groups)
