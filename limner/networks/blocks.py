"""A residual and an attention block that are quick on a CPU, for `unets.unet` and `decoder`."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from limner.networks.attention import attend, head_count
from limner.networks.checks import check_dropout
from limner.networks.layers import zero_init
from limner.networks.shape import Size


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, written out for forward-mode derivatives, which PyTorch's lacks in channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or forward_ad.unpack_dual(x).tangent is None:
            few = x.shape[1] < 16 * self.num_groups
            if few and x.dtype == torch.bfloat16 and x.device.type == "cpu":  # half the time
                return super().forward(x.float()).to(x.dtype)
            return super().forward(x)
        grouped = x.unflatten(1, (self.num_groups, -1))  # [B, G, C/G, H, W]
        variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0, keepdim=True)
        h = ((grouped - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)  # [B, C, H, W]
        return torch.addcmul(self.bias[:, None, None], h, self.weight[:, None, None])


def norm(width: int) -> GroupNorm:
    return GroupNorm(math.gcd(8, width), width)


class ChannelNorm(nn.LayerNorm):
    """[B, C, H, W], each position by its own channels, so that nothing depends on the size of the picture."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# What a network of clips does along time with the feature maps of its frames, at a place that it is told by name.
AlongTime = Callable[[str, Tensor], Tensor]


def frame_by_frame(place: str, x: Tensor) -> Tensor:
    """Nothing along time: of images."""
    return x


class Block(nn.Module):
    """Two 3x3 convolutions around a modulation by the embedding, added to their input."""

    def __init__(self, width: int, embedding: int, dropout: float, norm: Callable[[int], nn.Module] = norm):
        super().__init__()
        self.modulation = nn.Linear(embedding, 2 * width)
        self.norm1, self.conv1 = norm(width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = norm(width), zero_init(nn.Conv2d(width, width, 3, padding=1))
        self.dropout = nn.Dropout(check_dropout(dropout))

    def forward(
        self, x: Tensor, embedding: Tensor, along_time: AlongTime = frame_by_frame, place: str = ""
    ) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)  # 2 x [B, C, 1, 1]
        h = along_time(f"{place}_1", self.conv1(F.silu(self.norm1(x))))  # [B, C, H, W]
        h = torch.addcmul(shift, self.norm2(h), scale + 1)  # [B, C, H, W]
        h = along_time(f"{place}_2", self.conv2(self.dropout(F.silu(h))))  # [B, C, H, W]
        return x + h.to(x.dtype)  # adding two types takes ten times as long on a CPU


class Attention(nn.Module):
    """Self-attention over all positions and cross-attention to the tokens, in one softmax (Saharia 2022, Imagen).

    Without ``self_attention`` it attends to the tokens alone, which is much cheaper at large sizes.
    """

    def __init__(self, width: int, size: Size, head_width: int, context: int, self_attention: bool = True):
        super().__init__()
        self.heads = head_count(width, head_width)
        self.norm = norm(width)
        self.position = nn.Parameter(0.1 * torch.randn(width, *size))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width) if self_attention else None
        self.context = nn.Linear(context, 2 * width) if context else None
        self.out = zero_init(nn.Linear(width, width))

    def forward(self, x: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        h = (self.norm(x) + self.position).flatten(2).transpose(1, 2)  # [B, HW, C]
        keys = []
        if self.key_value is not None:
            keys.append(self.key_value(h))  # [B, HW, 2C]
        if self.context is not None and tokens is not None and mask is not None:
            mask = F.pad(mask, (h.shape[1] if keys else 0, 0), value=True)[:, None, None]  # [B, 1, 1, keys]
            keys.append(self.context(tokens))  # [B, L, 2C]
        q, k, v = self.query(h), *torch.cat(keys, dim=1).chunk(2, dim=-1)  # [B, HW, C], 2 x [B, keys, C]
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))  # [B, h, ., C/h]
        h = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # [B, HW, C]
        return x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])  # [B, C, H, W]
