"""The U-Net of Ho 2020, Nichol 2021, Dhariwal 2021 (ADM) and Rombach 2022, with options for what differs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import Order, attend, split_heads
from limner.networks.checks import check_dropout
from limner.networks.layers import (
    Down,
    Resample,
    Up,
    at_least_float32,
    group_norm,
    init_xavier_all,
    pad_to_multiple,
    resample,
    sinusoids,
    zero_init,
)
from limner.networks.shape import FeatureShape


class Block(nn.Module):
    """Two 3x3 convolutions, with the time embedding between them, added to their input; the second begins as 0.

    ``scale_shift``: the embedding scales and shifts the second norm's output (Nichol 2021, appendix A), rather than
    being added to its input.
    """

    def __init__(
        self, inputs: int, outputs: int, embedding: int, eps: float, scale_shift: bool, dropout: float,
        resample: Resample = "",
    ):  # fmt: skip
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1, self.conv1 = group_norm(inputs, eps), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embedding_proj = nn.Linear(embedding, outputs * (2 if scale_shift else 1))
        self.norm2 = group_norm(outputs, eps)
        self.conv2 = zero_init(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.dropout = nn.Dropout(check_dropout(dropout))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = resample(F.silu(self.norm1(x)), self.resample)  # [B, I, H', W']
        h = self.conv1(h)  # [B, O, H', W']
        modulation = self.embedding_proj(embedding)[:, :, None, None]  # [B, O or 2 O, 1, 1]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)  # 2 x [B, O, 1, 1]
            h = torch.addcmul(shift, self.norm2(h), scale + 1)  # [B, O, H', W']
        else:
            h = self.norm2(h + modulation)  # [B, O, H', W']
        h = self.conv2(self.dropout(F.silu(h)))  # [B, O, H', W']
        return self.shortcut(resample(x, self.resample)) + h  # [B, O, H', W']


class Attention(nn.Module):
    """Self-attention over all positions, and over tokens of ``context`` channels in the same softmax (Nichol 2022)."""

    def __init__(self, width: int, heads: int, eps: float, order: Order, context: int = 0):
        super().__init__()
        self.heads, self.order = heads, order
        self.norm = group_norm(width, eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.context = nn.Linear(context, 2 * width) if context else None
        self.out = zero_init(nn.Linear(width, width))

    def forward(self, x: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.qkv(self.norm(x).flatten(2).transpose(1, 2))  # [B, HW, 3C]
        q, k, v = split_heads(h, self.heads, self.order)  # 3 x [B, h, HW, C/h]
        if self.context is None:
            mask = None
        elif tokens is not None:
            kv = self.context(tokens).unflatten(2, (self.heads, 2, -1)).transpose(1, 2)  # [B, h, L, 2, C/h]
            k, v = (
                torch.cat([kv[..., i, :], y], dim=2) for i, y in enumerate((k, v))
            )  # 2 x [B, h, L + HW, C/h]
            mask = None if mask is None else F.pad(mask, (0, h.shape[1]), value=True)[:, None, None]
        h = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # [B, HW, C]
        return x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])  # [B, C, H, W]


class MultiHeadAttention(nn.Module):
    """Attention from h to ``context``, or from h to itself; only the last projection has a bias."""

    def __init__(self, width: int, heads: int, context: int = 0):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context or width, width, bias=False)
        self.value = nn.Linear(context or width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.query(h), self.key(context), self.value(context)  # [B, HW, C], 2 x [B, L, C]
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))  # [B, h, ., C/h]
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))  # [B, HW, C]


class FeedForward(nn.Module):
    """GEGLU: an MLP of four times the width, gated by a GELU (Shazeer 2020)."""

    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        h, gate = self.up(h).chunk(2, dim=-1)  # 2 x [B, HW, 4C]
        return self.down(h * F.gelu(gate))  # [B, HW, C]


class SpatialTransformer(nn.Module):
    """A transformer block over all positions: self-attention, cross-attention to the tokens, MLP (Rombach 2022)."""

    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.norm = group_norm(width, 1e-6)
        self.proj_in = nn.Linear(width, width)
        self.norm1, self.self_attention = nn.LayerNorm(width), MultiHeadAttention(width, heads)
        self.norm2, self.cross_attention = nn.LayerNorm(width), MultiHeadAttention(width, heads, context)
        self.norm3, self.feed_forward = nn.LayerNorm(width), FeedForward(width)
        self.proj_out = zero_init(nn.Linear(width, width))

    def forward(self, x: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        assert tokens is not None, "a network with a context needs tokens"
        visible = None if mask is None else mask[:, None, None]  # [B, 1, 1, L]
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # [B, HW, C]
        normed = self.norm1(h)  # [B, HW, C]
        h = h + self.self_attention(normed, normed)  # [B, HW, C]
        h = h + self.cross_attention(self.norm2(h), tokens, visible)  # [B, HW, C]
        h = h + self.feed_forward(self.norm3(h))  # [B, HW, C]
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])  # [B, C, H, W]


class Level(nn.Module):
    """The blocks of one size, an attention after each or none, and the resampling to the next size or None.

    On the way down each result is pushed onto the stack ``skips``; on the way up each block pops one.
    """

    def __init__(
        self, up: bool, blocks: list[Block], attentions: list[nn.Module], resample: nn.Module | None
    ):
        super().__init__()
        self.up, self.blocks, self.attentions = up, nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.resample = resample

    def forward(
        self, x: Tensor, embedding: Tensor, tokens: Tensor | None, mask: Tensor | None, skips: list[Tensor]
    ) -> Tensor:
        for i, block in enumerate(self.blocks.children()):
            if self.up:
                x = torch.cat([x, skips.pop()], dim=1)  # [B, C + S, H, W]
            x = block(x, embedding)  # [B, C, H, W]
            if self.attentions:
                x = self.attentions[i](x, tokens, mask)
            if not self.up:
                skips.append(x)
        if self.resample is not None:
            inputs = (x, embedding) if isinstance(self.resample, Block) else (x,)
            x = self.resample(*inputs)  # [B, C, H/2, W/2] or [B, C, 2 H, 2 W]
            if not self.up:
                skips.append(x)
        return x


class DiffusionUNet(nn.Module):
    """Image [B, channels, H, W] and times [B], in steps of a thousand -> [B, out, H, W].

    Levels that attend do so in every block. Heads have ``head_width`` channels each, or there are ``heads`` of them.
    With ``context``, the width of text tokens, attention includes these: their keys and values beside those of the
    positions where ``resample_blocks`` (GLIDE: Nichol 2022), else cross-attention in a transformer block (Rombach
    2022). Any height and width: padded inside and cropped again.

    ``original``: time features, epsilon, padding and initial weights of Ho 2020. ``scale_shift``: see `Block`.
    ``resample_blocks``: levels are joined by residual blocks rather than convolutions (Dhariwal 2021).
    """

    def __init__(
        self, shape: FeatureShape, *, head_width: int = 64, heads: int = 0, order: Order = "heads", context: int = 0,
        original: bool = False, scale_shift: bool = False, resample_blocks: bool = False,
    ):  # fmt: skip
        super().__init__()
        s, width = shape, shape.width
        self.width, self.original = width, original
        self.multiple = 2 ** (len(s.multiples) - 1)
        embedding, eps = 4 * width, 1e-6 if original else 1e-5
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(s.classes, embedding) if s.classes else None

        def block(inputs: int, outputs: int, resample: Resample = "") -> Block:
            return Block(inputs, outputs, embedding, eps, scale_shift, s.dropout, resample)

        def attention(wide: int) -> nn.Module:
            count = next(n for n in range(heads or max(1, wide // head_width), 0, -1) if wide % n == 0)
            if context and not resample_blocks:
                return SpatialTransformer(wide, count, context)
            return Attention(wide, count, eps, order, context)

        def join(wide: int, way: Resample) -> nn.Module:
            if resample_blocks:
                return block(wide, wide, way)
            return Down(wide, original) if way == "down" else Up(wide)

        self.stem = nn.Conv2d(s.channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        now, skips = width, [width]
        for level, wide in enumerate(s.widths):
            row = [block(now if i == 0 else wide, wide) for i in range(s.blocks)]
            last = level + 1 == len(s.widths)
            attentions = [attention(wide) for _ in row] if level in s.attention else []
            self.down.append(Level(False, row, attentions, None if last else join(wide, "down")))
            skips += [wide] * (s.blocks if last else s.blocks + 1)
            now = wide
        self.middle = nn.ModuleList(
            [block(now, now), *([attention(now)] if s.middle_attention else []), block(now, now)]
        )
        for level, wide in reversed(list(enumerate(s.widths))):
            row = [block(skips.pop() + (now if i == 0 else wide), wide) for i in range(s.blocks + 1)]
            attentions = [attention(wide) for _ in row] if level in s.attention else []
            self.up.append(Level(True, row, attentions, join(wide, "up") if level else None))
            now = wide
        self.norm = group_norm(now, eps)
        self.head = zero_init(nn.Conv2d(now, s.out, 3, padding=1))
        if original:
            init_xavier_all(self)
            for part in self.modules():
                if isinstance(part, Attention):  # three layers in the original
                    for weight in part.qkv.weight.detach().chunk(3):
                        nn.init.xavier_uniform_(weight)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, tokens: Tensor | None = None,
        mask: Tensor | None = None, added: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """``label`` [B] is -1 for none; ``tokens`` [B, L, context] with ``mask`` [B, L], False at padding.

        ``added`` [B, 4 width] is added to the time's embedding.
        """
        height, width = x.shape[-2:]
        embedding = self.time(sinusoids(t, self.width, self.original))  # [B, E]
        if added is not None:
            embedding = embedding + added  # [B, E]
        if self.label is not None and label is not None:
            embedding = embedding + self.label(label.clamp(min=0)) * (label >= 0)[:, None]  # [B, E]
        embedding = F.silu(embedding)  # [B, E]
        x = self.stem(pad_to_multiple(x, self.multiple))  # [B, W, H, W]
        skips = [x]
        for level in self.down.children():
            x = level(x, embedding, tokens, mask, skips)
        before, *attentions, after = self.middle.children()
        x = before(x, embedding)  # [B, Wl, H/2^l, W/2^l]
        for attention in attentions:
            x = attention(x, tokens, mask)
        x = after(x, embedding)
        for level in self.up.children():
            x = level(x, embedding, tokens, mask, skips)
        x = self.head(F.silu(self.norm(x)))  # [B, out, H, W]
        return at_least_float32(x[..., :height, :width])
