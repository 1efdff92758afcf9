"""Bridges from a given picture to the wanted one: translation by pairs, colouring, deblurring, filling holes.

A path leads from the given picture at t = 0 to the wanted one at t = 1, with noise between the ends (Liu 2023, I2SB;
Chadebec 2025, LBM). The network sees a point of it and the given picture, and predicts the wanted one: in one call
from the given picture itself, which is the expected answer, or in several, which draw one of those that there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import (
    Batch,
    Canvas,
    Condition,
    Denoised,
    Draws,
    ImageSpec,
    Model,
    Objective,
    Preset,
    given_pictures,
)
from limner.diffusion import solvers
from limner.diffusion.bridges import BridgePath, SchrodingerBridge, StraightBridge, bridge_point, brownian
from limner.diffusion.paths import STRAIGHT, NoiseLevel, expand_dims, stratified
from limner.diffusion.solvers import Problem, Solver
from limner.families._degrade import degrade, given_channels
from limner.families._given import enlarge, given_spec, none_given, whole_scale
from limner.families._presets import BASE_MUON, SMALL_UNET, TINY_UNET, training
from limner.fields import Bounds, Checked, Share
from limner.networks.images.channels import with_channels, within
from limner.networks.layers import at_least_float32, time_features
from limner.networks.unets.local import LocalLevels, LocalUNet
from limner.settings import LimnerError, Optimiser

OTHERWISE = ", or say what they are made of the images by with --model.degrade, such as blur"
LEFT_FLOOR = 0.05  # the loss divides by the share of the path that is left, or by this


@dataclass(frozen=True)
class BridgeConfig(LocalLevels):
    # what the given pictures are made of the images by, where no second source gives them; grey: colouring
    degrade: Literal["", "grey", "blur", "jpeg", "holes", "bicubic4", "real"] = ""
    # straight: as wide as sigma says; i2sb: the 1,000 steps of Liu 2023, widest in the middle
    path: Literal["straight", "i2sb"] = "straight"
    # straight: deviation of the noise from end to end; 0: none, and one answer for each given picture
    sigma: float = 0.2
    start: Share = 0.5  # fraction of training pictures at the given end, where drawing begins
    embedding: int = 128  # width of the embedding of time


@dataclass(frozen=True)
class BridgeSampling(Checked):
    steps: Annotated[int, Bounds(1, 1000)] = 1  # network calls from the given picture to the wanted one
    # bridge: draws noise as the path has it; the others follow the path's mean, and heun makes two calls a step
    solver: Literal["bridge", "euler", "heun", "dpm2m", "unipc"] = "bridge"
    eta: Share = 1.0  # bridge: noise drawn in each step; 0: none


class Network(nn.Module):
    """Point of the path x [B, C, H, W], given picture [B, C', H, W] and time [B] -> wanted picture [B, C, H, W]."""

    def __init__(self, config: BridgeConfig, channels: int, given: int):
        super().__init__()
        width = config.embedding
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.unet = LocalUNet(channels + given, channels, width, config)

    def forward(self, x: Tensor, given: Tensor, t: Tensor) -> Tensor:
        embedding = F.silu(self.time(time_features(t, 64)))  # [B, E]
        return x + at_least_float32(self.unet(torch.cat([x, given], dim=1), embedding))  # [B, C, H, W]


class Bridge(Model):
    Config = BridgeConfig
    Sampling = BridgeSampling
    given_by = ("pairs", "degraded")
    averaged = ("network",)
    paper = "Liu 2023, I2SB: Image-to-Image Schrödinger Bridge; Chadebec 2025, LBM: Latent Bridge Matching"
    about = "a path from given to wanted pictures; the default for pairs"

    def __init__(self, config: BridgeConfig, spec: ImageSpec):
        super().__init__(config, spec)
        self.degrades = bool(config.degrade)
        if config.degrade:
            self.scale, self.given = 1, given_channels(config.degrade, spec.channels)
            if spec.given is not None:
                raise LimnerError(
                    f"--model.degrade {config.degrade} makes the given pictures of the wanted ones, and the data "
                    "gives some too: leave it out, or name the wanted pictures alone."
                )
        else:
            self.given = given_spec(self, OTHERWISE).channels
            self.scale = whole_scale(self)
        self.network = Network(config, spec.channels, self.given)
        multiple = self.network.unet.multiple
        self.factor = multiple // math.gcd(multiple, self.scale)

    @property
    def colours(self) -> bool:
        """Whether the given pictures are grey ones of the same scene."""
        return self.degrades and self.config.degrade == "grey"

    @property
    def restores(self) -> bool:  # type: ignore[override]
        return self.degrades and not self.colours

    def degrade(self, image: Tensor, draws: Draws) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> what is given, as --model.degrade says. Raises LimnerError without it."""
        if not self.config.degrade:
            raise none_given(self, OTHERWISE)
        return degrade(image, self.config.degrade, draws)

    def receive(self, image: Tensor) -> Tensor:
        """A given picture [B, ., h, w] in the channels and the size that the network takes; to be coloured: grey."""
        if self.colours:
            image = degrade(with_channels(image, self.spec.channels), "grey", Draws([]))
        return enlarge(with_channels(image, self.given), self.scale)

    def finish(self, picture: Tensor, given: Tensor) -> Tensor:
        """The result of drawing, in range; what is coloured keeps its grey."""
        return colour(given, picture) if self.colours else within(picture)

    def margin(self, sampling: BridgeSampling) -> int:
        """Pixels of the given picture; those of each call add up."""
        calls = sampling.steps * (1 + (sampling.solver == "heun"))
        return -(-calls * self.network.unet.margin // self.scale) + 2 * (self.scale > 1)

    @property
    def bridge(self) -> BridgePath:
        c = self.config
        return StraightBridge(c.sigma) if c.path == "straight" else SchrodingerBridge.symmetric()

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Squared error of the wanted picture over the share of the path that is left (Liu 2023, I2SB, eq. 12)."""
        wanted, given = batch.image, self.receive(given_pictures(self, batch))
        n, device = len(wanted), wanted.device
        t = stratified(n, device) * (torch.rand(n, device=device) >= self.config.start)  # [B]
        start = with_channels(given, self.spec.channels)
        x = bridge_point(self.bridge, wanted, start, torch.randn_like(wanted), t)
        error = self.network(x, given, t) - wanted  # [B, C, H, W]
        left = expand_dims(self.bridge.left(t), error).to(error.dtype).clamp(min=LEFT_FLOOR)
        return {"wanted": (error.square() / left).mean()}

    def steps(self, given: Tensor, sampling: BridgeSampling, draws: Draws) -> Iterator[solvers.Step]:
        """From the given picture [B, C', H, W] to the wanted one."""
        x, bridge = with_channels(given, self.spec.channels), self.bridge
        problem = Problem(x, bridge.levels(sampling.steps), STRAIGHT, partial(draws.normal, *x.shape[1:]))
        solver: dict[str, Solver] = {  # a generator does nothing before its first query
            "bridge": brownian(problem, bridge, sampling.eta),
            "euler": solvers.euler(problem),
            "heun": solvers.heun(problem),
            "dpm2m": solvers.dpm_2m(problem),
            "unipc": solvers.unipc(problem),
        }

        def denoise(x: Tensor, level: NoiseLevel) -> Denoised:
            return Denoised(self.network(x, given, torch.full((len(x),), level.time, device=x.device)))

        return solvers.drive(solver[sampling.solver], denoise)

    def translate(
        self, image: Tensor, condition: Condition, sampling: BridgeSampling, draws: Draws
    ) -> Tensor:
        """[B, C', h, w] in [-1, 1] -> [B, C, scale h, scale w] in [-1, 1]."""
        given = self.receive(image)
        *_, last = self.steps(given, sampling, draws)
        return self.finish(last.x, given)

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: BridgeSampling, draws: Draws) -> Iterator[Canvas]:
        assert condition.image is not None, "it draws from a given picture"
        given, total = self.receive(condition.image), len(self.bridge.levels(sampling.steps)) - 1
        for step in self.steps(given, sampling, draws):
            picture, guess = (partial(self.finish, x, given) for x in (step.x, step.denoised))
            yield Canvas(step.done, total, picture, guess)


def colour(given: Tensor, picture: Tensor) -> Tensor:
    """[B, C, H, W]: the colours of ``picture``, as strong as they can be at the grey (and alpha) of ``given``.

    Colours of one grey lie on a plane; on the way from the grey itself to the picture's, it is the last in range.
    """
    if picture.shape[1] == 1:
        return given
    grey, most = given[:, :1], given[:, 3:] if given.shape[1] == 4 else torch.ones_like(given[:, :1])
    strength = picture[:, :3] - with_channels(picture[:, :3], 1)  # [B, 3, H, W], of no luminance
    room = torch.where(strength > 0, most - grey, grey + 1)  # [B, 3, H, W]
    share = (room / strength.abs().clamp(min=1e-6)).amin(1, keepdim=True).clamp(0, 1)  # [B, 1, H, W]
    return torch.cat([grey + share * strength, given[:, 3:]], dim=1)


TINY = BridgeConfig(widths=(16, 32), blocks=(1, 1), embedding=32)
Bridge.presets = {
    "tiny": Preset(TINY, TINY_UNET),
    "small": Preset(BridgeConfig(), SMALL_UNET),
    "base": Preset(
        BridgeConfig(widths=(64, 128, 256, 384), blocks=(2, 2, 2, 4), embedding=256), replace(BASE_MUON, batch=64)
    ),
    # Liu 2023's path, optimiser and batch, with this U-Net and from the beginning rather than from ADM's weights.
    "paper": Preset(
        BridgeConfig(path="i2sb", start=0.0, widths=(128, 256, 384, 512), blocks=(2, 2, 2, 2), embedding=512),
        training(
            Optimiser("adamw", lr=5e-5, betas=(0.9, 0.999)), "network", batch=256, schedule="constant",
            average=17_700.0,
        ),
        size=(256, 256), channels=3,
    ),
}  # fmt: skip
