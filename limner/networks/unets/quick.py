"""`unet.UNet` with embeddings of a time and a label: the default of the diffusion families, quick on a CPU."""

from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.layers import time_features
from limner.networks.shape import FeatureShape
from limner.networks.unets.unet import UNet, UNetLevels


class QuickUNet(nn.Module):
    """Image [B, channels, H, W] and times [B] in [0, 1] -> [B, out, H, W], 0 at first.

    ``head_width``: channels of an attention head. ``augment``: numbers that describe an image's augmentation; 0: none.
    """

    def __init__(self, shape: FeatureShape, head_width: int = 64, augment: int = 0):
        super().__init__()
        s, embedding = shape, 2 * shape.width
        self.time = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(s.classes, embedding) if s.classes else None
        self.augment = nn.Linear(augment, embedding, bias=False) if augment else None
        levels = UNetLevels(
            tuple(s.widths), (s.blocks,) * len(s.widths), tuple(s.attention_resolutions), (), s.patch, head_width,
            s.dropout,
        )  # fmt: skip
        self.unet = UNet(s.channels, s.out, s.size, embedding, levels)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """``label`` [B] is -1 for none; ``augment`` [B, A] is 0 for an image that was not augmented."""
        embedding = self.time(time_features(t, 64))  # [B, E]
        if self.label is not None and label is not None:
            embedding = embedding + self.label(label.clamp(min=0)) * (label >= 0)[:, None]  # [B, E]
        if self.augment is not None and augment is not None:
            embedding = embedding + self.augment(augment)  # [B, E]
        return self.unet(x, F.silu(embedding)).float()  # [B, out, H, W]
