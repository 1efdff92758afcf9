"""`unet.UNet` told of a time and a label: what the diffusion families use where there is no GPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.layers import time_features
from limner.networks.unets.unet import UNet


class QuickUNet(nn.Module):
    """Image [B, channels, H, W] and times [B] in [0, 1] -> an image of ``out`` channels, 0 at first.

    ``multiples`` are the levels' widths in units of ``width``, from patches of ``patch`` pixels a side down;
    ``attention`` the numbers of the levels that attend, in heads of ``head`` channels. ``augment`` is how many
    numbers tell what was done to an image.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        size: tuple[int, int],
        width: int,
        multiples: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        *,
        patch: int = 2,
        head: int = 64,
        classes: int = 0,
        augment: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        embedding = 2 * width
        self.time = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(classes, embedding) if classes else None
        self.augment = nn.Linear(augment, embedding, bias=False) if augment else None
        widths = [width * m for m in multiples]
        self.unet = UNet(
            channels, out, size, embedding, 0, patch, widths, [blocks] * len(widths), attention, head=head,
            dropout=dropout,
        )  # fmt: skip

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """``label`` [B] is -1 for none; ``augment`` [B, A] is zero for an image as it was."""
        embedding = self.time(time_features(t, 64))  # [B, E]
        if self.label is not None and label is not None:
            embedding = embedding + self.label(label.clamp(min=0)) * (label >= 0)[:, None]  # [B, E]
        if self.augment is not None and augment is not None:
            embedding = embedding + self.augment(augment)  # [B, E]
        return self.unet(x, F.silu(embedding)).float()  # [B, out, H, W]
