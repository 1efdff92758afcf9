"""Limner's flow and the programs that it is measured against, each trained as its own makers train it.

Every contestant is built at about the same number of parameters, takes one training step at a time and draws
images. What a peer's recipe says stands at its class; what had to be adapted to 32x32 pixels and to a short
run is said there too, and never to the peer's harm.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
import math
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner import config, families
from limner.core import Condition, DataOptions
from limner.data import Data
from limner.distributed import Ranks
from limner.inference.pipeline import generate
from limner.training.loop import Loop

INSTALL = "pip install diffusers einops ema-pytorch accelerate scipy tqdm && pip install --no-deps " + (
    "denoising-diffusion-pytorch"
)
WARMUP = 0.1  # a peer's warm-up takes at most this share of the run


class Contestant(Protocol):
    """What a benchmark asks of each side."""

    name: str
    parameters: int  # trained, in all networks
    batch: int  # images a step

    def step(self, share: float) -> None:
        """One step of training at a share of the run: forward, backward, optimiser, moving average."""

    def sample(self, n: int, calls: int) -> Tensor:
        """[n, C, H, W] in [-1, 1] from the averaged weights, with ``calls`` network calls an image."""


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def missing() -> list[str]:
    """The libraries among the peers that are not installed here."""
    needed = {
        "diffusers": ["diffusers"],
        "denoising-diffusion-pytorch": ["denoising_diffusion_pytorch", "einops", "ema_pytorch", "accelerate"],
    }
    return [name for name, modules in needed.items() if not all(map(importlib.util.find_spec, modules))]


def fit(shape: Sequence[int], parameters: int, build: Callable[[Sequence[int]], nn.Module]) -> list[int]:
    """Channels by level, in about the proportions of ``shape``, that come within 3% of ``parameters``.

    Multiples of 16 first, which a CPU's convolutions like best; the nearest to the proportions wins.
    """

    def size(widths: Sequence[int]) -> int:
        with torch.device("meta"):
            return count(build(widths))

    unit = [32 * s // min(shape) for s in shape]
    scale = math.sqrt(parameters / size(unit))
    for step in (16, 8):
        ranges = [[w for w in range(step, 1024, step) if 0.6 < w / (scale * u) < 1.6] for u in unit]
        choices = [c for c in itertools.product(*ranges) if list(c) == sorted(c)]
        choices.sort(key=lambda c: sum(math.log(w / (scale * u)) ** 2 for w, u in zip(c, unit, strict=True)))
        for widths in choices[:200]:
            if abs(size(widths) / parameters - 1) <= 0.03:
                return list(widths)
    raise ValueError(f"no channels in the proportions {shape} come to {parameters:,} parameters")


def as_tensor(data: Data) -> Tensor:
    """[N, C, H, W] in [-1, 1]"""
    return data.batch(np.arange(len(data))).image


def shuffled(images: Tensor, batch: int) -> Iterator[Tensor]:
    """Endless batches [B, C, H, W], in a new order each epoch; the last part of an epoch is dropped."""
    batch = min(batch, len(images))
    while True:
        for rows in torch.randperm(len(images)).split(batch):
            if len(rows) == batch:
                yield images[rows]


class Limner:
    """A preset of flow, or of another family, through Limner's own training loop."""

    name = "limner"

    def __init__(self, data: Data, batch: int | None = None, preset: str = "small", name: str = "flow"):
        family = families.load(name)
        chosen = config.find_preset(family, preset)
        training = dataclasses.replace(chosen.training, device="cpu")
        training = dataclasses.replace(training, batch=batch or training.batch)
        spec = data.spec
        model = families.build(name, chosen.model, spec)
        run = config.Run(
            family=name, sources=(), preset=preset, size=(spec.height, spec.width), budget="1h", seed=0,
            model=model.config, training=training, data=DataOptions(),
        )  # fmt: skip
        self.loop = Loop(run, model, data, torch.device("cpu"), Ranks())
        self.parameters, self.batch = count(self.loop.model), training.batch

    def step(self, share: float) -> None:
        self.loop.take_step(share)

    def sample(self, n: int, calls: int) -> Tensor:
        model = self.loop.average.eval()
        sampling = model.Sampling(steps=calls, solver="euler")
        precision = self.loop.run.training.precision
        return generate(model, Condition(n), range(n), sampling, batch=n, precision=precision)


class DCGAN:
    """The DCGAN of PyTorch's examples (Radford 2016), made for 64x64, with one level less for 32x32.

    Noise of 100, a generator of ReLU and a discriminator of leaky ReLU with batch norm, weights from
    N(0, 0.02), Adam at 2e-4 with betas (0.5, 0.999), batches of 64. ``parameters`` are of both networks.
    """

    name = "dcgan"
    noise = 100

    def __init__(self, images: Tensor, parameters: int, batch: int = 64, channels_last: bool = False):
        channels = images.shape[1]
        levels = {(32, 32): (1, 2, 4), (64, 64): (1, 2, 4, 8)}.get(tuple(images.shape[2:]))
        if levels is None:
            raise ValueError(f"the DCGAN here is for 32x32 or 64x64 pixels, not {tuple(images.shape[2:])}")
        widths = fit(levels, parameters, lambda w: nn.ModuleList(self.networks(channels, w)))
        self.generator, self.discriminator = self.networks(channels, widths)
        for module in (*self.generator.modules(), *self.discriminator.modules()):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
        if channels_last:
            self.generator.to(memory_format=torch.channels_last)
            self.discriminator.to(memory_format=torch.channels_last)
        self.parameters, self.batch = count(self.generator) + count(self.discriminator), batch
        self.batches = shuffled(images, batch)
        self.optimisers = [
            torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        ]

    @classmethod
    def networks(cls, channels: int, widths: Sequence[int]) -> tuple[nn.Module, nn.Module]:
        generator, discriminator = nn.Sequential(), nn.Sequential()
        down = [cls.noise, *reversed(widths)]  # from the coarsest level to the finest
        for i, (wide, narrow) in enumerate(itertools.pairwise(down)):
            stride, padding = (2, 1) if i else (1, 0)
            generator.append(nn.ConvTranspose2d(wide, narrow, 4, stride, padding, bias=False))
            generator.extend([nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)])
        generator.extend([nn.ConvTranspose2d(widths[0], channels, 4, 2, 1, bias=False), nn.Tanh()])
        for i, (narrow, wide) in enumerate(itertools.pairwise([channels, *widths])):
            discriminator.append(nn.Conv2d(narrow, wide, 4, 2, 1, bias=False))
            discriminator.extend([nn.BatchNorm2d(wide)] if i else [])
            discriminator.append(nn.LeakyReLU(0.2, inplace=True))
        discriminator.extend([nn.Conv2d(widths[-1], 1, 4, bias=False), nn.Flatten(0)])  # logits [B]
        return generator, discriminator

    def step(self, share: float) -> None:
        real = next(self.batches)
        moves_generator, moves_discriminator = self.optimisers
        fake = self.generator(torch.randn(len(real), self.noise, 1, 1))
        self.discriminator.zero_grad()
        for images, truth in ((real, 1.0), (fake.detach(), 0.0)):
            self.discriminator_loss(images, truth).backward()
        moves_discriminator.step()
        self.generator.zero_grad()
        self.discriminator_loss(fake, 1.0).backward()
        moves_generator.step()

    def discriminator_loss(self, images: Tensor, truth: float) -> Tensor:
        logits = self.discriminator(images)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))

    @torch.no_grad()
    def sample(self, n: int, calls: int) -> Tensor:
        """One call an image, whatever is asked; in training mode, as the example draws its samples."""
        return torch.cat(
            [self.generator(torch.randn(min(64, n - i), self.noise, 1, 1)) for i in range(0, n, 64)]
        )


class Diffusers:
    """``UNet2DModel`` and ``DDPMScheduler`` as the unconditional training example of diffusers trains them.

    It predicts the noise; AdamW at 1e-4 with betas (0.95, 0.999), eps 1e-8 and decay 1e-6; gradients clipped
    at norm 1; a cosine schedule after 500 steps of warm-up; a moving average with decay up to 0.9999 that
    warms up by the power 3/4; batches of 16. Adapted: the warm-up ends at a tenth of the run where that comes
    first, and samples are drawn by DDIM in as many calls as Limner's instead of 1000.

    Its blocks are those of google/ddpm-cifar10-32, the published model for this size, with fewer channels.
    """

    name = "diffusers"
    shape: tuple[int, ...] = (128, 256, 256, 256)
    attention = 1  # the level that attends, counted from the finest

    def __init__(self, images: Tensor, parameters: int, batch: int = 16, channels_last: bool = False):
        from diffusers import DDIMScheduler, DDPMScheduler
        from diffusers.training_utils import EMAModel

        self.image_shape = images.shape[1:]
        self.network = self.build(fit(self.shape, parameters, self.build))
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.parameters, self.batch, self.steps = count(self.network), batch, 0
        self.batches = shuffled(images, batch)
        self.schedule = DDPMScheduler(num_train_timesteps=1000)
        self.solver = DDIMScheduler.from_config(self.schedule.config)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self.average = EMAModel(
            self.network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4
        )

    def build(self, widths: Sequence[int]) -> nn.Module:
        from diffusers import UNet2DModel

        channels, side = self.image_shape[0], self.image_shape[-1]
        down = ["DownBlock2D"] * len(widths)
        up = ["UpBlock2D"] * len(widths)
        down[self.attention], up[-1 - self.attention] = "AttnDownBlock2D", "AttnUpBlock2D"
        return UNet2DModel(
            sample_size=side, in_channels=channels, out_channels=channels, layers_per_block=2,
            block_out_channels=tuple(widths), down_block_types=tuple(down), up_block_types=tuple(up),
            norm_num_groups=8,
        )  # fmt: skip

    def step(self, share: float) -> None:
        self.steps += 1
        warm = min(1.0, max(self.steps / 500, share / WARMUP))
        self.optimiser.param_groups[0]["lr"] = 1e-4 * warm * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        clean = next(self.batches)
        noise = torch.randn_like(clean)
        times = torch.randint(0, 1000, (len(clean),))
        noisy = self.schedule.add_noise(clean, noise, times).contiguous(memory_format=self.format)
        F.mse_loss(self.network(noisy, times).sample, noise).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.step(self.network.parameters())

    @torch.inference_mode()
    def sample(self, n: int, calls: int) -> Tensor:
        self.average.store(self.network.parameters())
        self.average.copy_to(self.network.parameters())
        self.network.eval()
        self.solver.set_timesteps(calls)
        drawn = []
        for at in range(0, n, 64):
            x = torch.randn(min(64, n - at), *self.image_shape).contiguous(memory_format=self.format)
            for t in self.solver.timesteps:
                x = self.solver.step(self.network(x, t).sample, t, x).prev_sample
            drawn.append(x.clamp(-1, 1))
        self.network.train()
        self.average.restore(self.network.parameters())
        return torch.cat(drawn)


class DiffusersExample(Diffusers):
    """The same with the six levels that the example writes out, made for 64x64 pixels, narrowed."""

    name = "diffusers-example"
    shape = (128, 128, 256, 256, 512, 512)
    attention = 4


class DenoisingDiffusion:
    """``Unet`` and ``GaussianDiffusion`` of denoising-diffusion-pytorch, as its readme and Trainer use them.

    Four levels of 1, 2, 4 and 8 times the channels, a sigmoid schedule of 1000 steps, predicting v; Adam at
    1e-4 with betas (0.9, 0.99), gradients clipped at norm 1, a moving average of 0.995 every 10 steps,
    batches of 16. Adapted: drawn by its DDIM in as many calls as Limner's.
    """

    name = "denoising-diffusion-pytorch"

    def __init__(self, images: Tensor, parameters: int, batch: int = 16, channels_last: bool = False):
        import ema_pytorch

        package = without_torchvision("denoising_diffusion_pytorch")
        package.denoising_diffusion_pytorch.tqdm = lambda steps, **_: steps  # no bar for every batch drawn
        channels, side = images.shape[1], images.shape[-1]

        def build(widths: Sequence[int]) -> nn.Module:
            dim = math.gcd(*widths)
            levels = tuple(w // dim for w in widths)
            return package.Unet(dim, init_dim=widths[0], dim_mults=levels, channels=channels, flash_attn=True)

        network = build(fit((1, 2, 4, 8), parameters, build))
        if channels_last:
            network.to(memory_format=torch.channels_last)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.parameters, self.batch = count(network), batch
        self.batches = shuffled(images, batch)
        self.diffusion = package.GaussianDiffusion(network, image_size=side, timesteps=1000)
        self.optimiser = torch.optim.Adam(self.diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self.average = ema_pytorch.EMA(self.diffusion, beta=0.995, update_every=10)

    def step(self, share: float) -> None:
        images = next(self.batches) * 0.5 + 0.5  # it takes [0, 1] and scales by itself
        self.diffusion(images.contiguous(memory_format=self.format)).backward()
        nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.update()

    @torch.inference_mode()
    def sample(self, n: int, calls: int) -> Tensor:
        averaged = self.average.ema_model.eval()
        averaged.sampling_timesteps, averaged.is_ddim_sampling = calls, calls < averaged.num_timesteps
        drawn = [averaged.sample(batch_size=min(64, n - at)) for at in range(0, n, 64)]
        return (torch.cat(drawn) * 2 - 1).clamp(-1, 1)


def without_torchvision(name: str) -> types.ModuleType:
    """Import a module that imports torchvision without needing it here: its wheel breaks beside a CPU torch."""
    stubs = {n: types.ModuleType(n) for n in ("torchvision", "torchvision.transforms", "torchvision.utils")}
    stubs["torchvision"].transforms = stubs["torchvision.transforms"]  # type: ignore[attr-defined]
    stubs["torchvision"].utils = stubs["torchvision.utils"]  # type: ignore[attr-defined]
    if name in sys.modules:
        return sys.modules[name]
    # What asks whether torchvision is there must hear the truth, so it is imported before the stubs stand.
    importlib.import_module("accelerate")
    before = set(sys.modules)
    with mock.patch.dict(sys.modules, stubs):
        module = importlib.import_module(name)
        own = {n: m for n, m in sys.modules.items() if n not in before and n not in stubs}
    sys.modules.update(own)
    return module


LIBRARIES = (Diffusers, DiffusersExample, DenoisingDiffusion)
PEERS = (DCGAN, *LIBRARIES)


def available(peers: Sequence[type]) -> list[type]:
    """Those of the peers that are installed; says on stderr what to install for the others."""
    absent = missing()
    if absent:
        print(f"Without {' and '.join(absent)}, which are not installed: {INSTALL}", file=sys.stderr)
    return [p for p in peers if not any(p.name.startswith(name) for name in absent)]


def machine(threads: int) -> dict[str, object]:
    """What the figures depend on."""
    return {"threads": threads, "torch": torch.__version__, "cpus": os.cpu_count(), "dtype": "defaults"}
