"""Layers with equalised learning rate: weights are N(0, 1) and scaled at use (Karras 2018, 4.1), and other layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.gans.convolve import conv2d


def leaky_relu(x: Tensor, gain: float = 2**0.5) -> Tensor:
    """Leaky ReLU of slope 0.2, times ``gain``: sqrt(2) in StyleGAN2, 1 in ProGAN."""
    return F.leaky_relu(x, 0.2) * gain


def pixel_norm(x: Tensor) -> Tensor:
    """[B, C, ...]: the vector at each position normalised to mean square 1 (Karras 2018, 4.2)."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def minibatch_stddev(x: Tensor, group: int = 4, features: int = 1) -> Tensor:
    """[B, C, H, W] -> [B, C + features, H, W]: appends the standard deviation within groups (Karras 2018, section 3).

    Image i belongs to group i mod (B / group); a batch that does not divide gets the next smaller group size.
    """
    size, channels, height, width = x.shape
    group = min(group, size)
    while size % group:
        group -= 1
    y = x.reshape(group, size // group, features, channels // features, height, width)
    y = y.to(torch.promote_types(x.dtype, torch.float32))
    y = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt()  # [M, F, c, H, W], the biased deviation
    y = y.mean((2, 3, 4))  # [M, F]
    y = y.repeat(group, 1)[:, :, None, None].expand(-1, -1, height, width).to(x.dtype)
    return torch.cat([x, y], dim=1)


class EqualLinear(nn.Module):
    """A linear layer of weights N(0, 1) / lr_multiplier, scaled by gain lr_multiplier / sqrt(fan in).

    ``lr_multiplier`` multiplies the learning rate (0.01 in StyleGAN's mapping); ``bias_init`` is the initial bias.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, lr_multiplier: float = 1.0, gain: float = 1.0,
        bias_init: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias_init / lr_multiplier)) if bias else None
        self.scale, self.lr_multiplier = gain * lr_multiplier / inputs**0.5, lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.lr_multiplier
        return F.linear(x, self.weight * self.scale, bias)


class EqualConv2d(nn.Module):
    """A convolution of weights N(0, 1), scaled by gain / sqrt(fan in), padded to the same size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = gain / (inputs * kernel**2) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[2] // 2)
