"""Spectrally normalised blocks of class-conditional GANs: residual, bottleneck, and self-attention (Brock 2019)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.gans.spectral import SpectralConv2d, SpectralLinear


class Attention(nn.Module):
    """Attention of all positions to those of a max-pooled image of half the size (Zhang 2019, section 3)."""

    def __init__(self, channels: int):
        super().__init__()
        inner, half = max(1, channels // 8), max(1, channels // 2)
        self.query = SpectralConv2d(channels, inner, 1, bias=False)
        self.key = SpectralConv2d(channels, inner, 1, bias=False)
        self.value = SpectralConv2d(channels, half, 1, bias=False)
        self.out = SpectralConv2d(half, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).mT  # [B, H W, C / 8]
        key = F.max_pool2d(self.key(x), 2).flatten(2).mT  # [B, H W / 4, C / 8]
        value = F.max_pool2d(self.value(x), 2).flatten(2).mT  # [B, H W / 4, C / 2]
        weights = (query @ key.mT).float().softmax(2).to(value.dtype)  # [B, H W, H W / 4]
        attended = (weights @ value).mT.unflatten(2, x.shape[2:])  # [B, C / 2, H, W]
        return x + self.gamma * self.out(attended)  # [B, C, H, W]


class ConditionalNorm(nn.Module):
    """Batch norm whose gain and bias are linear in the condition; the gain is 1 plus that."""

    def __init__(self, channels: int, inputs: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = SpectralLinear(inputs, channels, bias=False)
        self.bias = SpectralLinear(inputs, channels, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gain, bias = 1 + self.gain(y), self.bias(y)  # [B, C]
        return self.norm(x) * gain[:, :, None, None] + bias[:, :, None, None]  # [B, C, H, W]


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0)  # [B, C, 2H, 2W]


class Up(nn.Module):
    """The generator's block (Brock 2019, figure 15b): [B, i, H, W] -> [B, o, 2H, 2W]."""

    def __init__(self, i: int, o: int, inputs: int):
        super().__init__()
        self.norms = nn.ModuleList([ConditionalNorm(i, inputs), ConditionalNorm(o, inputs)])
        self.convs = nn.ModuleList([SpectralConv2d(i, o, 3), SpectralConv2d(o, o, 3)])
        self.shortcut = SpectralConv2d(i, o, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.convs[0](upsample(F.relu(self.norms[0](x, y))))  # [B, o, 2H, 2W]
        h = self.convs[1](F.relu(self.norms[1](h, y)))  # [B, o, 2H, 2W]
        return h + upsample(self.shortcut(x))  # a 1x1 convolution commutes with the upsampling


class DeepUp(nn.Module):
    """The deep generator's block (figure 16a): a bottleneck whose shortcut drops the last channels."""

    def __init__(self, i: int, o: int, inputs: int, up: bool):
        super().__init__()
        self.up, self.channels, inner = up, o, i // 4
        self.norms = nn.ModuleList([ConditionalNorm(c, inputs) for c in (i, inner, inner, inner)])
        shapes = ((i, inner, 1), (inner, inner, 3), (inner, inner, 3), (inner, o, 1))
        self.convs = nn.ModuleList([SpectralConv2d(*shape) for shape in shapes])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h, x = x, x[:, : self.channels]
        for stage, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = F.relu(norm(h, y))
            if self.up and stage == 1:
                h, x = upsample(h), upsample(x)
            h = conv(h)
        return h + x  # [B, o, H, W] or [B, o, 2H, 2W]


class Down(nn.Module):
    """The discriminator's block (figure 15c), of the wide variant: [B, i, H, W] -> [B, o, H/2, W/2].

    The input of the first block is an image, to which no ReLU is applied. The last block keeps the resolution.
    """

    def __init__(self, i: int, o: int, first: bool = False, downsample: bool = True):
        super().__init__()
        self.first, self.downsample = first, downsample
        self.convs = nn.ModuleList([SpectralConv2d(i, o, 3), SpectralConv2d(o, o, 3)])
        self.shortcut = SpectralConv2d(i, o, 1) if i != o or downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.convs[0](x if self.first else F.relu(x))  # [B, o, H, W]
        h = self.convs[1](F.relu(h))  # [B, o, H, W]
        if self.downsample:  # a 1x1 convolution commutes with the pooling
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + self.shortcut(x)  # [B, o, H/2, W/2]


class DeepDown(nn.Module):
    """The deep discriminator's block (figure 16b): its shortcut gains channels by a 1x1 convolution."""

    def __init__(self, i: int, o: int, downsample: bool):
        super().__init__()
        self.downsample, inner = downsample, o // 4
        shapes = ((i, inner, 1), (inner, inner, 3), (inner, inner, 3), (inner, o, 1))
        self.convs = nn.ModuleList([SpectralConv2d(*shape) for shape in shapes])
        self.shortcut = SpectralConv2d(i, o - i, 1) if o > i else None

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.convs[:3]:
            h = conv(F.relu(h))
        h = F.relu(h)
        if self.downsample:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self.shortcut is not None:
            x = torch.cat([x, self.shortcut(x)], dim=1)
        return self.convs[3](h) + x  # [B, o, H, W] or [B, o, H/2, W/2]
