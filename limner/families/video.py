"""Clips: a factorised space-time network, whose frames each have a noise level of their own.

Video diffusion (Ho 2022) by flow matching, on the network of `flow` with layers along time beside its own. Levels by
frame (diffusion forcing: Chen 2024; Song 2025) let one run draw from nothing, a label or a text, animate a picture,
fill in between frames and go on with a clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limner.core import (
    Batch,
    Canvas,
    Condition,
    ConditionEmbedding,
    Draws,
    ImageSpec,
    Model,
    Objective,
    Parent,
    Preset,
)
from limner.diffusion.forcing import few_of, per_frame, random_given, random_subclips
from limner.diffusion.objectives import FlowMatching, denoised
from limner.diffusion.paths import STRAIGHT, Discrete, NoiseLevel, betas, training_times
from limner.diffusion.sampling import Plan
from limner.families._clips import VideoSampling, draw_clip
from limner.families._conditioning import ConditionEmbedder, choose_condition, embed_condition
from limner.families._flow import FlowNetwork, FlowNetworkConfig
from limner.families._presets import BASE_LEVELS, BASE_MUON, SMALL_UNET, TINY_LEVELS, training
from limner.fields import Share
from limner.networks.images.headroom import HEADROOM, with_headroom
from limner.networks.unets.space_time import Positions, TemporalLayers, fold_frames, unfold_frames
from limner.networks.unets.vdm import VDMLevels, VDMUNet
from limner.settings import LimnerError, Optimiser

Phase = Literal["single", "sparse", "whole"]
COSINE = Discrete(betas("cosine", 1000))  # of the published 3D U-Net


@dataclass(frozen=True)
class VideoConfig(FlowMatching):
    # flow matching: training times are sigmoid(normal); mean of the normal. Below that of images: frames that are alike
    # tell at more noise what they show
    time_mean: float = -1.5
    # run of flow, on single pictures: its network of frames is taken over, and training begins as that run
    pretrained: str = ""
    # flow: that of flow with layers along time, and flow matching; vdm: the 3D U-Net of Ho 2022, which predicts noise
    network: Literal["flow", "vdm"] = "flow"
    unet: FlowNetworkConfig = field(default_factory=FlowNetworkConfig)  # flow: the network of a frame
    vdm: VDMLevels = field(default_factory=VDMLevels)  # vdm: its feature maps
    positions: Positions = "rotary"  # flow: how attention along time tells frames apart
    causal: bool = False  # no frame sees a later one
    # noise levels in training: of each frame by itself in a share of the clips, or one for all frames (Ho 2022)
    levels: Literal["frames", "shared"] = "frames"
    independent: Share = (
        0.2  # levels=frames: fraction of training clips whose frames have levels of their own
    )
    given: Share = 0.4  # levels=frames: fraction of training clips that are given some of their frames
    # network=flow: training begins with these shares of the budget on single frames, then on few frames far apart;
    # they cost less than whole clips
    still_phase: Share = 0.15
    sparse_phase: Share = 0.45
    # network=flow: fraction of training clips of which few frames are seen after those phases too: what draws key
    # frames first
    sparse: Share = 0.0
    condition: Literal["auto", "none", "label", "text"] = "auto"  # auto: text, else label, as the data has it
    condition_dropout: Share = 0.1  # fraction of training clips whose condition is left out, for guidance
    headroom: Share = 0.0  # how far beyond the range of pixels those at its ends are learned


class Network(nn.Module):
    """Noisy clip [B, C, T, H, W], the times of its frames [B, T] and condition -> clean clip [B, C, T, H, W]."""

    def __init__(self, config: VideoConfig, spec: ImageSpec, condition: str):
        super().__init__()
        c = config.unet
        self.frame = FlowNetwork(c, spec, condition)
        self.time_layers = TemporalLayers(c.widths, c.depths, c.head_width, config.positions, config.causal)

    @property
    def embedder(self) -> ConditionEmbedder:
        return self.frame.embedder

    def forward(self, x: Tensor, t: Tensor, condition: ConditionEmbedding, stride: int = 1) -> Tensor:
        """``stride``: from each frame of x to the next, in frames of the whole clip."""
        frames = x.shape[2]
        rows = condition[
            torch.arange(len(x), device=x.device).repeat_interleave(frames)
        ]  # one for each frame
        along_time = partial(self.time_layers, frames=frames, stride=stride)
        out = self.frame(fold_frames(x), t.flatten(), rows, along_time)  # [B T, C, H, W]
        return unfold_frames(out, frames)


class VDMNetwork(nn.Module):
    """Noisy clip [B, C, T, H, W], its frames' diffusion steps [B, T] and condition -> noise [B, C, T, H, W]."""

    def __init__(self, config: VideoConfig, spec: ImageSpec, condition: str):
        super().__init__()
        self.unet = VDMUNet(spec.channels, spec.channels, config.vdm, config.causal)
        self.embedder = ConditionEmbedder(condition, len(spec.classes), self.unet.embedding, config.unet.text)

    def forward(self, x: Tensor, t: Tensor, condition: ConditionEmbedding) -> Tensor:
        frames, added = x.shape[2], condition.embedding
        added = None if added is None else added.repeat_interleave(frames, 0)  # [B T, E]
        return unfold_frames(self.unet(fold_frames(x), t.flatten(), frames, added), frames)


class Video(Model):
    Config = VideoConfig
    Sampling = VideoSampling
    reads = frozenset({"label", "text", "image", "mask"})
    video = True
    averaged = ("network",)
    parents: ClassVar[dict[str, Parent]] = {
        "pretrained": Parent(FlowNetwork, "a network of flow", config="unet", weights="network.frame",
                             source="network", frozen=False, stills=True)
    }  # fmt: skip
    paper = "Ho 2022, Video Diffusion Models; Chen 2024, Diffusion Forcing; Song 2025, History-Guided Video Diffusion"
    about = "clips by flow matching: from text, from given frames, longer"

    def __init__(self, config: VideoConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if spec.frames < 2:
            raise LimnerError(
                "video trains on clips, not on stills: set --data.frames to 2 or more, or train flow on them."
            )
        if config.still_phase + config.sparse_phase > 1:
            raise LimnerError(
                f"--model.still-phase {config.still_phase:g} and --model.sparse-phase {config.sparse_phase:g} "
                "are more than the whole training: choose shares whose sum is at most 1."
            )
        self.discrete = config.network == "vdm"
        if self.discrete and config.pretrained:
            raise LimnerError(
                "--model.pretrained names a run of flow, whose network --model.network vdm does not have: leave one of "
                "them out."
            )
        make = VDMNetwork if self.discrete else Network
        self.network: Any = make(config, spec, choose_condition(self, "text", "label"))
        self.shared_levels, self.causal = config.levels == "shared", config.causal
        self.key_frames = not (self.discrete or config.causal) and config.sparse > 0
        self.clean = NoiseLevel(1.0, 0.0, 0.0 if self.discrete else 1.0)

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def random_levels(self, clips: int, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Training times [B, T], and which frames are given [B, T]: those have the time of clean data."""
        c = self.config

        def times(n: int) -> Tensor:
            if self.discrete:
                return COSINE.random_times(n, device)
            return training_times(n, c.time_mean, c.time_std, c.time_uniform, device)

        t = times(clips)[:, None].expand(-1, frames)  # [B, T]
        given = torch.zeros(clips, frames, dtype=torch.bool, device=device)
        if not self.shared_levels and frames > 1:
            kind = torch.rand(clips, 1, device=device)
            own = times(clips * frames).view(clips, frames)
            t = torch.where(kind < c.independent, own, t)
            given = random_given(clips, frames, device, c.causal) & (kind > 1 - c.given)
        return t.masked_fill(given, self.clean.time), given

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The error of the velocity of the frames that are not given (Lipman 2023), or of their noise.

        Stills among the clips are clips of one frame: no other frame takes part.
        """
        rows = self.network.embedder.with_dropout(batch, self.config.condition_dropout)
        image = with_headroom(batch.image, self.config.headroom)
        still = torch.zeros(len(batch.image), dtype=torch.bool, device=batch.image.device)
        if batch.counts is not None:
            still = batch.counts.sum(1) == 1  # [B]
        parts = []
        whole, single = (~still).nonzero()[:, 0], still.nonzero()[:, 0]
        for seen, of_phase in self.split(whole):
            data, stride = self.subclips(image[seen], of_phase)
            parts.append(self.errors(data, rows[seen.repeat(len(data) // len(seen))], stride))
        if len(single):
            parts.append(self.errors(image[single, :, :1], rows[single]))
        error, counted = (torch.stack([part[i] for part in parts]).sum() for i in (0, 1))
        return {"noise" if self.discrete else "velocity": error / counted}

    def phase(self) -> Phase:
        """What training sees of clips now: first single frames, then few, then all."""
        c = self.config
        if not self.training or self.discrete:
            return "whole"
        still_phase = 0.0 if c.pretrained else c.still_phase  # that run was trained on single frames
        if self.progress < still_phase:
            return "single"
        return "sparse" if self.progress < still_phase + c.sparse_phase else "whole"

    def split(self, clips: Tensor) -> list[tuple[Tensor, Phase]]:
        """The numbers of clips [N], and what is seen of them."""
        phase = self.phase()
        mixed = phase == "whole" and self.training and not self.discrete
        few = round(self.config.sparse * len(clips)) if mixed else 0
        parts: list[tuple[Tensor, Phase]] = [(clips[:few], "sparse"), (clips[few:], phase)]
        return [(numbers, seen) for numbers, seen in parts if len(numbers)]

    @staticmethod
    def subclips(data: Tensor, seen: Phase) -> tuple[Tensor, int]:
        """Clips [B, C, T, H, W] -> what is seen of them [N B, C, t, H, W], and its stride."""
        frames = data.shape[2]
        if seen == "whole":
            return data, 1
        if seen == "single":
            return random_subclips(data, 1, max(frames // 4, 1))
        few = few_of(frames)
        return random_subclips(data, few, max(frames // (2 * few), 1))

    def errors(self, data: Tensor, condition: ConditionEmbedding, stride: int = 1) -> tuple[Tensor, Tensor]:
        """The sum of the errors of clips [B, C, T, H, W], and of how many numbers it is."""
        t, given = self.random_levels(len(data), data.shape[2], data.device)
        alpha, sigma = self.scales(t, given)
        x = alpha * data + sigma * (noise := torch.randn_like(data))
        network = partial(self.network, stride=stride) if stride > 1 else self.network
        out = network(x, t, condition)  # [B, C, T, H, W]
        if self.discrete:
            error = (out - noise).abs()
        else:
            error = ((out - data) / sigma.clamp(min=self.config.sigma_floor)).square()
        counted = per_frame(~given).expand_as(error)
        return (error * counted).sum(), counted.sum()

    def scales(self, t: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma [B, 1, T, 1, 1] at times [B, T]; 1 and 0 for given frames."""
        path = COSINE if self.discrete else STRAIGHT
        alpha, sigma = path.alpha(t).float(), path.sigma(t).float()
        return per_frame(torch.where(given, 1.0, alpha)), per_frame(torch.where(given, 0.0, sigma))

    embed = embed_condition

    def denoise_frames(
        self, x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding, stride: int = 1
    ) -> Tensor:
        """x [B, C, T, H, W], its times [B, T], alpha and sigma [B, 1, T, 1, 1] -> the clean clip."""
        network = partial(self.network, stride=stride) if stride > 1 else self.network
        out = network(x, time, rows)
        return denoised("noise", COSINE, x, out, alpha, sigma).data if self.discrete else out

    def plan(self, sampling: VideoSampling) -> Plan:
        room = self.config.headroom
        encode = partial(with_headroom, room=room)
        if self.discrete:
            return Plan(COSINE, COSINE.levels(sampling.steps), self.spec.shape, 1 + room, encode=encode)
        return Plan(STRAIGHT, STRAIGHT.levels(sampling.steps, sampling.shift), self.spec.shape, encode=encode)

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: VideoSampling, draws: Draws) -> Iterator[Canvas]:
        if not self.drops_condition:  # it never learned to draw without a label
            condition = self.with_labels(condition, draws)
        yield from draw_clip(self, condition, sampling, draws)


CLIPS = replace(SMALL_UNET, batch=16, samples=32, average=2_000.0)
Video.presets = {
    # Whole clips from the start: a budget of a few steps has no time for phases, and a longer one goes on exactly.
    "tiny": Preset(
        VideoConfig(unet=FlowNetworkConfig(**TINY_LEVELS), still_phase=0.0, sparse_phase=0.0, headroom=HEADROOM),
        replace(CLIPS, average=100.0),
    ),
    "small": Preset(VideoConfig(sparse=0.5, headroom=HEADROOM), CLIPS),
    "base": Preset(
        VideoConfig(unet=FlowNetworkConfig(**BASE_LEVELS), sparse=0.5, headroom=HEADROOM), replace(BASE_MUON, batch=64)
    ),
    # lucidrains' video-diffusion-pytorch: two batches of 32 clips of 16 frames a step; every tenth step the average
    # moves by 0.005.
    "paper": Preset(
        VideoConfig(
            network="vdm", levels="shared", condition="none", condition_dropout=0.0, still_phase=0.0, sparse_phase=0.0
        ),
        training(
            Optimiser("adam", lr=1e-4, betas=(0.9, 0.999)), "network", batch=64, accumulate=2, schedule="constant",
            average=640 * math.log(0.5) / math.log(0.995),
        ),
        size=(64, 64), channels=3, parameters={"network": 35_706_243},
    ),
}  # fmt: skip
