"""A convolution with fast second derivatives, for gradient penalties; PyTorch's own are several times slower.

PyTorch's formula convolves images with images, group by group. Here the gradient by the input is a function of its
own, whose derivatives are again a convolution and its gradient (as in the code of Karras 2020b).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Options = tuple[int, int, int]  # stride, padding, groups
_weight_gradients = True


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Skips the gradients by weights, which ``torch.autograd.grad`` by images does not use."""
    global _weight_gradients
    before, _weight_gradients = _weight_gradients, False
    try:
        yield
    finally:
        _weight_gradients = before


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, options: Options, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the convolution by x, weight and bias, where ``wanted``."""
    stride, padding, groups = options
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups, wanted
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return F.conv2d(x, weight, bias, options[0], options[1], 1, options[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad[:3]
        by_weight, by_bias = by_weight and _weight_gradients, by_bias and _weight_gradients
        if not torch.is_grad_enabled():  # no further derivatives: all at once
            return *_gradients(grad, x, weight, ctx.options, [by_x, by_weight, by_bias]), None
        return (
            _ByInput.apply(grad, weight, x, ctx.options) if by_x else None,
            _gradients(grad, x, weight, ctx.options, [False, True, False])[1] if by_weight else None,
            grad.sum((0, 2, 3)) if by_bias else None, None,
        )  # fmt: skip


class _ByInput(torch.autograd.Function):
    """The gradient of a convolution by x; it depends on the shape of x only."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, x: Tensor, options: Options) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.options = options
        by_x = _gradients(grad, x, weight, options, [True, False, False])[0]
        assert by_x is not None
        return by_x

    @staticmethod
    def backward(ctx: Any, change: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        grad, weight = ctx.saved_tensors
        by_grad, by_weight = ctx.needs_input_grad[:2]
        return (
            conv2d(change, weight, None, *ctx.options) if by_grad else None,
            _gradients(grad, change, weight, ctx.options, [False, True, False])[1] if by_weight else None,
            None, None,
        )  # fmt: skip


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """``F.conv2d`` with fast second derivatives."""
    if not torch.is_grad_enabled():
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)
    if torch.is_autocast_enabled(x.device.type):  # autocast applies to the forward pass alone
        kind = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
    return _Convolution.apply(x, weight, bias, (stride, padding, groups))


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` with fast second derivatives; equal stride and padding along both axes, no dilation."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self.padding, tuple)
        return conv2d(input, self.weight, self.bias, self.stride[0], self.padding[0], self.groups)
