"""The network of `flow`, which `video` has for its frames."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from torch import Tensor, nn

from limner.core import ConditionEmbedding, ImageSpec
from limner.families._by_images import by_images, unet_widths
from limner.families._conditioning import ConditionEmbedder, run_body
from limner.networks.blocks import AlongTime, frame_by_frame
from limner.networks.layers import time_features
from limner.networks.unets.unet import UNet, UNetLevels
from limner.text.encoder import TextConfig


@dataclass(frozen=True)
class FlowNetworkConfig(UNetLevels):
    # U-Net: channels by level; default: by the size of the images
    widths: tuple[int, ...] = by_images(unet_widths)
    embedding: int = 128  # width of the embedding of time and condition
    text: TextConfig = field(default_factory=TextConfig)  # the text encoder


class FlowNetwork(nn.Module):
    """Noisy image [B, C, H, W], time [B] and condition -> clean image [B, C, H, W]."""

    def __init__(self, config: FlowNetworkConfig, spec: ImageSpec, condition: str):
        c, width = config, config.embedding
        super().__init__()
        self.config = FlowNetworkConfig(**{f.name: getattr(c, f.name) for f in fields(FlowNetworkConfig)})
        self.embedder = ConditionEmbedder(condition, len(spec.classes), width, c.text)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        size = (spec.height, spec.width)
        self.unet = UNet(spec.channels, spec.channels, size, width, c, self.embedder.context)

    def forward(
        self, x: Tensor, t: Tensor, condition: ConditionEmbedding, along_time: AlongTime = frame_by_frame
    ) -> Tensor:
        embedding = self.time(time_features(t, 64))  # [B, E]
        return run_body(self.unet, x, embedding, condition, along_time)  # [B, C, H, W]
