"""The U-Nets of a chain that draws an image in stages, quick ones for a CPU or Dhariwal 2021's, and their inputs."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.layers import at_least_float32, time_features
from limner.networks.shape import FeatureShape, Size
from limner.networks.unets.diffusion import DiffusionUNet
from limner.networks.unets.unet import UNet, UNetLevels


@dataclass(frozen=True)
class StageConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("attention_resolutions", "cross_attention_resolutions")

    # quick: for a CPU; adm: Dhariwal 2021, which reads text as GLIDE does
    network: Literal["quick", "adm"] = "quick"
    width: int = 48  # channels of the first level
    multiples: tuple[int, ...] = (1, 3, 4)  # channels of each level in those units; each halves the side
    blocks: int = 1  # residual blocks by level, on the way down
    attention_resolutions: tuple[int, ...] = (4,)  # shorter sides, in pixels, of maps with attention
    cross_attention_resolutions: tuple[int, ...] = (8,)  # quick: the same, for attention to the tokens alone
    patch: int = 2  # quick: pixels a side of a patch, folded into the channels
    head_width: int = 64  # channels of an attention head
    scale_shift: bool = True  # adm: the time embedding scales and shifts features; false: it is added
    dropout: float = 0.0  # inside the blocks

    @property
    def embedding(self) -> int:
        """Channels of the embedding of the time."""
        return 4 * self.width


class StageUNet(nn.Module):
    """Image [B, channels, H, W] at times [B] in [0, 1] -> [B, out, H, W].

    ``added`` [B, embedding] is added to the time's embedding; tokens [B, L, context] and mask [B, L] are attended to.
    """

    def __init__(self, config: StageConfig, channels: int, out: int, size: Size, context: int = 0):
        c, width = config, config.embedding
        super().__init__()
        self.time: nn.Sequential | None = None
        self.unet: UNet | DiffusionUNet
        if c.network == "quick":
            self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
            levels = UNetLevels(
                tuple(c.width * m for m in c.multiples), (c.blocks,) * len(c.multiples), c.attention_resolutions,
                c.cross_attention_resolutions, c.patch, c.head_width, c.dropout,
            )  # fmt: skip
            self.unet = UNet(channels, out, size, width, levels, context)
        else:
            shape = FeatureShape(channels, out, size, c.width, c.multiples, c.blocks, c.attention_resolutions,
                                 dropout=c.dropout, middle_attention=bool(c.attention_resolutions))  # fmt: skip
            self.unet = DiffusionUNet(shape, head_width=c.head_width, context=context, scale_shift=c.scale_shift,
                                      resample_blocks=True)  # fmt: skip

    def forward(
        self, x: Tensor, t: Tensor, added: Tensor | None = None, tokens: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if self.time is None:
            return self.unet(x, 1000 * t, None, tokens, mask, added)  # [B, out, H, W]
        embedding = self.time(time_features(t, 64))  # [B, E]
        embedding = embedding if added is None else embedding + added
        return at_least_float32(self.unet(x, F.silu(embedding), tokens, mask))  # [B, out, H, W]


class EmbeddingProjection(nn.Module):
    """An image's embedding and an encoded text -> what a U-Net adds to its time's embedding, and tokens for it.

    The embedding [B, D] is projected twice: onto the time's, and to ``extra`` tokens that come before the text's
    (Ramesh 2022, 2.1). So is the text: its summary [B, P], and each of its tokens [B, L, W].
    """

    def __init__(self, embedding: int, pooled: int, text: int, added: int, context: int, extra: int = 4):
        super().__init__()
        self.extra = extra
        self.absent = nn.Parameter(torch.randn(embedding))  # stands for an embedding that is left out
        self.embedding_proj = nn.Linear(embedding, added)
        self.embedding_tokens = nn.Linear(embedding, extra * context)
        self.pooled_proj = nn.Linear(pooled, added)
        self.text_proj = nn.Sequential(nn.Linear(text, context), nn.LayerNorm(context))

    def forward(
        self, embedding: Tensor, pooled: Tensor, tokens: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> added [B, A], tokens [B, extra + L, context], mask [B, extra + L]."""
        added = self.embedding_proj(embedding) + self.pooled_proj(pooled)  # [B, A]
        first = extra_tokens(self.embedding_tokens(embedding), self.extra)  # [B, extra, context]
        text = self.text_proj(tokens)  # [B, L, context]
        return added, torch.cat([first, text], dim=1), F.pad(mask, (self.extra, 0), value=True)


def extra_tokens(x: Tensor, count: int) -> Tensor:
    """[B, count * W] -> [B, count, W]; token k takes numbers k, k + count, ..., as in published weights."""
    return x.unflatten(1, (-1, count)).transpose(1, 2)
