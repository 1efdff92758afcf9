"""Flow matching in pixel space: the default family, unconditional, by label or by text.

A straight path leads from noise at t = 0 to data at t = 1 (Lipman 2023; Liu 2023). The network predicts the
clean image, the loss compares velocities (Li and He 2025), and images are drawn by following the velocity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from torch import Tensor

from limner.core import Batch, ConditionEmbedding, Denoised, ImageSpec, Model, Objective, Preset
from limner.diffusion.objectives import FlowMatching, flow_matching_loss
from limner.diffusion.paths import STRAIGHT
from limner.diffusion.sampling import Plan, SamplingConfig, Shift, SolverName, draw
from limner.families._conditioning import choose_condition, embed_condition
from limner.families._flow import FlowNetwork, FlowNetworkConfig
from limner.families._presets import BASE_LEVELS, BASE_MUON, SMALL_UNET, TINY_LEVELS, TINY_UNET, training
from limner.fields import Bounds, Share
from limner.networks.images.headroom import HEADROOM, with_headroom
from limner.settings import Optimiser


@dataclass(frozen=True)
class FlowConfig(FlowMatching, FlowNetworkConfig):
    condition: Literal["auto", "none", "label", "text"] = "auto"  # auto: text, else label, as the data has it
    condition_dropout: Share = 0.1  # fraction of training images whose condition is left out, for guidance
    headroom: Share = 0.0  # how far beyond the range of pixels those at its ends are learned


@dataclass(frozen=True)
class FlowSampling(SamplingConfig):
    steps: int = 16  # steps from noise to image
    solver: SolverName = "dpm2m_sde"  # draws noise, which washes out earlier errors (docs/generators.md)
    shift: Shift = 1.5  # above 1: more of the steps near the noise
    # factor of every velocity; 1.05 to 1.1 helps after short trainings, and harms after long ones
    velocity_scale: Annotated[float, Bounds(0.5, 2)] = 1.0


class Flow(Model):
    Config = FlowConfig
    Sampling = FlowSampling
    reads = frozenset({"label", "text", "image", "mask"})
    averaged = ("network",)
    paper = "Lipman 2023, Flow Matching for Generative Modeling; Li and He 2025, Back to Basics"
    about = "flow matching in pixel space; the default"

    def __init__(self, config: FlowConfig, spec: ImageSpec):
        super().__init__(config, spec)
        self.network = FlowNetwork(config, spec, choose_condition(self, "text", "label"))

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        c = self.config
        rows = partial(self.network.embedder.with_dropout, batch, c.condition_dropout)
        data = with_headroom(batch.image, c.headroom)
        return flow_matching_loss(lambda x, t: self.network(x, t, rows()), data, c, "data")

    embed = embed_condition

    def denoise(
        self, x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding
    ) -> Denoised:
        return Denoised(self.network(x, time, rows))

    def plan(self, sampling: FlowSampling) -> Plan:
        levels = STRAIGHT.levels(sampling.steps, sampling.shift)
        return Plan(
            STRAIGHT, levels, self.spec.shape, velocity_scale=sampling.velocity_scale,
            encode=partial(with_headroom, room=self.config.headroom),
        )  # fmt: skip

    sample = draw


Flow.presets = {
    "tiny": Preset(FlowConfig(**TINY_LEVELS, headroom=HEADROOM), TINY_UNET),
    "small": Preset(FlowConfig(headroom=HEADROOM), SMALL_UNET),
    "base": Preset(FlowConfig(**BASE_LEVELS, headroom=HEADROOM), BASE_MUON),
    # After Lipman 2023's CIFAR-10: uniform times, Adam, pixels rather than patches; with this U-Net.
    "paper": Preset(
        FlowConfig(patch=1, widths=(256, 512, 512, 512), blocks=(2, 2, 2, 2), attention_resolutions=(16,),
                   cross_attention_resolutions=(16,), time_uniform=1.0),
        training(Optimiser("adam", lr=5e-4, betas=(0.9, 0.999)), "network", batch=256, warmup=45_000 * 256),
        size=(32, 32),
    ),
}  # fmt: skip
