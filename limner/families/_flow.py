"""The network of `flow`, which `video` has for its frames."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from torch import Tensor, nn

from limner.core import ConditionEmbedding, ImageSpec
from limner.families._conditioning import ConditionEmbedder, run_body
from limner.networks.blocks import AlongTime, frame_by_frame
from limner.networks.layers import time_features
from limner.networks.unets.unet import UNet, UNetLevels
from limner.text.encoder import TextConfig


@dataclass(frozen=True)
class FlowNetworkConfig(UNetLevels):
    embedding: int = 128  # width of the embedding of time and condition
    text: TextConfig = field(default_factory=TextConfig)  # the text encoder
    # add the noisy image to what the network makes, the more of it the less noise there is (Karras 2022)
    input_skip: bool = False


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
        out = run_body(self.unet, x, embedding, condition, along_time)  # [B, C, H, W]
        if not self.config.input_skip:
            return out
        skip, scale = preconditioning(t)  # [B] each
        return skip[:, None, None, None] * x + scale[:, None, None, None] * out


def preconditioning(t: Tensor, data_std: float = 0.5) -> tuple[Tensor, Tensor]:
    """What x and the network's output are multiplied by, at times t [B] of the straight path (Karras 2022, table 1).

    So the output has to be of one scale at every level of noise, and an image without noise stays as it is.
    """
    sigma = 1 - t
    variance = (t * data_std) ** 2 + sigma**2
    return t * data_std**2 / variance, sigma * data_std / variance.sqrt()
