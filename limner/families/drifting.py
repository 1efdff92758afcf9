"""One-step generation by drifting: samples move to where the data are and away from one another, in training.

Deng, Li, Li, Du and He 2026, "Generative Modeling via Drifting". A generator draws an image from noise in one
call. In each step its samples are compared with the batch's images in several spaces of features; the drifting
field says which way each should move, and the generator learns to draw there. There is no teacher, no second
player and no path from noise to data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import (
    Batch,
    Canvas,
    Condition,
    Draws,
    ImageSpec,
    LimnerError,
    Model,
    Objective,
    Optimiser,
    Parent,
    Preset,
    Training,
)
from limner.families._conditioning import ConditionEmbedder, ConditionEmbedding, choose
from limner.losses.drift import Pairs, drift, drift_loss, pairs, pairs_alike
from limner.networks.layers import check_levels
from limner.networks.transformers.dit import DiffusionTransformer, DiTBlocks
from limner.networks.transformers.patch import PatchConfig, PatchTransformer
from limner.networks.unets.unet import Attention, Block, norm
from limner.text.encoder import TextConfig
from limner.text.similarity import trigram_similarity


@dataclass(frozen=True)
class DriftingConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("attention",)

    condition: Literal["auto", "none", "label", "text"] = "auto"  # auto: label, else text, as the data has it
    network: Literal["decoder", "transformer"] = "decoder"
    body: DiTBlocks = field(default_factory=DiTBlocks)  # of the transformer, whose noise is an image
    styles: int = 32  # further noise of the transformer: so many random entries of a learned table, added up
    codes: int = 64  # entries of that table
    latent: int = 64  # of the decoder, as the next seven: numbers of noise an image
    patch: int = 2  # pixels a side of the places of the finest level
    widths: tuple[int, ...] = (64, 128, 192)  # channels by level, finest first; each level halves the side
    blocks: tuple[int, ...] = (1, 2, 2)  # residual blocks by level
    attention: tuple[int, ...] = (2,)  # levels that attend
    head: int = 64  # width of an attention head
    embedding: int = 128  # width of what the blocks are told of noise and condition
    fine: int = 32  # channels at the image's full side, to which the places are grown smoothly
    bounded: bool = False  # a tanh at the end of the generator: pure black and white are easy, for drawings
    features: tuple[int, ...] = (
        32,
        64,
        128,
    )  # channels of the fixed random network; each stage halves the side
    pretrained: str = ""  # run of mae, dino or vit whose features samples are compared in too
    seer: PatchConfig = field(default_factory=PatchConfig)  # the settings of its transformer
    edges: float = 4.0  # how much more than plain filters those see that add up to 0
    places: int = 16  # places of a map of features that are compared in a step, drawn at random
    draws: int = 32  # samples a step, at most
    together: int = 2  # classes that a step draws, at least
    each: int = 2  # samples that a step draws for a text: one without rivals would hardly move
    alike: float = 0.1  # of texts: how fast pairs cease to count as their likeness falls from 1
    condition_dropout: float = 0.1  # share of samples drawn without their text
    text: TextConfig = field(default_factory=TextConfig)  # the text encoder
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)  # of the kernel, in units of the mean distance
    guidance: float = 1.0  # strongest guidance that is learned, by labels; 1: none
    guidance_power: float = 3.0  # how rarely strong guidance is trained: p(alpha) ~ alpha^-power


@dataclass(frozen=True)
class DriftingSampling:
    guidance: float = 1.0  # away from the other classes; 1: none, at most what was trained
    truncation: float = 1.0  # spread of the noise; below 1: safer and more alike


def guides(config: DriftingConfig, condition: str) -> bool:
    """Whether strengths of guidance are learned: away from other classes, so by labels only."""
    return condition == "label" and config.guidance > 1


class Decoder(nn.Module):
    """Noise [B, latent], the condition and the guidance scale [B] -> an image of any range."""

    def __init__(self, config: DriftingConfig, spec: ImageSpec, condition: str):
        c = config
        super().__init__()
        self.embedder = ConditionEmbedder(condition, len(spec.classes), c.embedding, c.text)
        check_levels(c.widths, c.blocks)
        self.latent, self.bounded = c.latent, c.bounded
        levels = len(c.widths)
        multiple = c.patch * 2 ** (levels - 1)
        height, width = (
            math.ceil(side / multiple) * multiple // c.patch for side in (spec.height, spec.width)
        )
        self.size, self.patch = (spec.height, spec.width), c.patch
        self.mapping = nn.Sequential(
            nn.Linear(c.latent, c.embedding), nn.SiLU(), nn.Linear(c.embedding, c.embedding)
        )
        self.guidance = nn.Linear(1, c.embedding, bias=False) if guides(c, condition) else None
        context = c.text.width if condition == "text" else 0
        base = (c.widths[-1], height >> (levels - 1), width >> (levels - 1))
        self.start = nn.Sequential(nn.Linear(c.latent + c.embedding, math.prod(base)), nn.Unflatten(1, base))
        self.position, self.blocks, self.upsample = nn.ParameterList(), nn.ModuleList(), nn.ModuleList()
        self.attention = nn.ModuleDict()
        for level, (wide, depth) in enumerate(zip(c.widths, c.blocks, strict=True)):
            size = (height >> level, width >> level)
            self.position.append(nn.Parameter(0.3 * torch.randn(wide, *size)))
            self.blocks.append(nn.ModuleList(Block(wide, c.embedding, 0.0) for _ in range(depth)))
            if level in c.attention:
                self.attention[str(level)] = Attention(wide, size, c.head, context)
            if level + 1 < levels:
                self.upsample.append(nn.Conv2d(c.widths[level + 1], wide, 1))
        self.norm = norm(c.widths[0])
        self.narrow = nn.Conv2d(c.widths[0], c.fine, 3, padding=1)
        self.draw = nn.Sequential(
            norm(c.fine),
            nn.SiLU(),
            nn.Conv2d(c.fine, c.fine, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(c.fine, spec.channels, 3, padding=1),
        )

    def truncate(self, noise: Tensor, truncation: float) -> Tensor:
        return truncation * noise

    def forward(self, noise: Tensor, condition: ConditionEmbedding, guidance: Tensor | None = None) -> Tensor:
        embedding = self.mapping(noise)  # [B, E]
        if condition.embedding is not None:
            embedding = embedding + condition.embedding  # [B, E]
        if self.guidance is not None and guidance is not None:
            embedding = embedding + self.guidance(guidance.log()[:, None])  # [B, E]
        embedding = F.silu(embedding)  # [B, E]
        x = self.start(torch.cat([noise, embedding], dim=1))  # [B, Wl, h, w]
        x = x.contiguous(memory_format=torch.channels_last)
        for level in reversed(range(len(self.blocks))):
            if level < len(self.upsample):
                x = F.interpolate(self.upsample[level](x), scale_factor=2.0)  # [B, Wl, 2h, 2w]
            x = x + self.position[level]  # [B, Wl, h, w]
            for block in self.blocks[level].children():
                x = block(x, embedding)  # [B, Wl, h, w]
            if str(level) in self.attention:
                x = self.attention[str(level)](x, condition.tokens, condition.mask)  # [B, Wl, h, w]
        x = self.narrow(F.silu(self.norm(x)))  # [B, fine, h, w]
        x = F.interpolate(x, scale_factor=float(self.patch), mode="bilinear")  # [B, fine, H', W']
        x = self.draw(x)[..., : self.size[0], : self.size[1]].float()  # [B, C, H, W]
        return x.tanh() if self.bounded else x


class Transformer(nn.Module):
    """As the decoder; the noise is an image, and random entries of a table of styles (Deng 2026, A.2).

    A point's last numbers choose the entries, by where they stand among normal ones.
    """

    def __init__(self, config: DriftingConfig, spec: ImageSpec, condition: str):
        c, width = config, config.body.width
        super().__init__()
        self.embedder = ConditionEmbedder(condition, len(spec.classes), width, c.text)
        self.shape, self.bounded = spec.shape, c.bounded
        self.latent = math.prod(spec.shape) + c.styles
        self.guidance = nn.Linear(1, width, bias=False) if guides(c, condition) else None
        self.style = nn.Embedding(c.codes, width)
        for table in (self.style, *([self.embedder.label] if condition == "label" else [])):
            nn.init.normal_(table.weight, std=0.02)
        self.body = DiffusionTransformer(
            c.body, spec.channels, spec.channels, (spec.height, spec.width),
            c.text.width if condition == "text" else 0,
        )  # fmt: skip

    def truncate(self, noise: Tensor, truncation: float) -> Tensor:
        """The image's noise alone: entries of the table lie in no order, so that none is safer than another."""
        image = math.prod(self.shape)
        return torch.cat([truncation * noise[:, :image], noise[:, image:]], dim=1)

    def forward(self, noise: Tensor, condition: ConditionEmbedding, guidance: Tensor | None = None) -> Tensor:
        image, style = noise.split([math.prod(self.shape), noise.shape[1] - math.prod(self.shape)], dim=1)
        codes = len(self.style.weight)
        index = (torch.special.ndtr(style.float()) * codes).long().clamp(max=codes - 1)  # [B, styles]
        embedding = self.style(index).sum(1)  # [B, W]
        if condition.embedding is not None:
            embedding = embedding + condition.embedding  # [B, W]
        if self.guidance is not None and guidance is not None:
            embedding = embedding + self.guidance(guidance.log()[:, None])  # [B, W]
        image = image.unflatten(1, self.shape)  # [B, C, H, W]
        x = self.body(image, F.silu(embedding), condition.tokens, condition.mask).float()  # [B, C, H, W]
        return x.tanh() if self.bounded else x


class RandomFeatures(nn.Module):
    """A convolutional network that stays as it was drawn: image [B, C, H, W] -> maps, each half the side of the last.

    Random features know nothing of what images show, but they tell edges, corners and textures apart. Neighbours
    being much alike, random filters see little of these: so half of the first add up to 0, and see ``edges`` times as
    strongly. The first map has the full side, as means of 2x2 pixels would not see patterns within them.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], edges: float):
        super().__init__()
        self.stages = nn.ModuleList()
        for wide in widths:
            self.stages.append(
                nn.ModuleList([nn.Conv2d(channels, wide, 3, padding=1), nn.Conv2d(wide, wide, 3, padding=1)])
            )
            channels = wide
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight, math.sqrt(2))
                nn.init.normal_(layer.bias, std=0.1)  # type: ignore[arg-type]
        first = next(layer for layer in self.modules() if isinstance(layer, nn.Conv2d))
        half = first.weight.detach()[::2]
        half.sub_(half.mean((2, 3), keepdim=True)).mul_(edges)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for stage in self.stages:
            if maps and min(x.shape[-2:]) > 1:
                x = F.avg_pool2d(x, 2, ceil_mode=True)  # [B, Wl, h/2, w/2]
            for layer in stage.children():
                x = F.leaky_relu(layer(x), 0.2)  # [B, Wl, h, w]
            maps.append(x)
        return maps


def spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C, H, W] -> mean and standard deviation over each block of 2x2."""
    mean = F.avg_pool2d(x, 2, ceil_mode=True)
    square = F.avg_pool2d(x.square(), 2, ceil_mode=True)
    return mean, (square - mean.square()).clamp(min=0).add(1e-4).sqrt()


def vectors(image: Tensor, maps: list[Tensor]) -> list[Tensor]:
    """What samples are compared by: each [B, D, L], L places of one space of features (Deng 2026, A.5)."""
    found = [image.flatten(1)[:, :, None]]  # the image itself
    for x in maps:
        found.append(x.flatten(2))
        flat = x.flatten(2)
        found.append(flat.mean(2, keepdim=True))
        found.append(flat.var(2, keepdim=True, correction=0).add(1e-4).sqrt())
        if min(x.shape[-2:]) > 2:
            found += [part.flatten(2) for part in spread(x)]
    last = maps[-1]
    found.append(last.flatten(1)[:, :, None])
    return found


class Drifting(Model):
    Config = DriftingConfig
    Sampling = DriftingSampling
    reads = frozenset({"label", "text"})
    averaged = ("generator",)
    parents: ClassVar[dict[str, Parent]] = {
        "pretrained": Parent(
            PatchTransformer, "a transformer over patches", config="seer", weights="seer", source="body"
        )
    }
    paper = "Deng, Li, Li, Du and He 2026, Generative Modeling via Drifting"
    about = "samples drift to the data during training; no teacher"

    def __init__(self, config: DriftingConfig, spec: ImageSpec):
        super().__init__(config, spec)
        made = Decoder if config.network == "decoder" else Transformer
        condition = choose(self, "label", "text")
        self.generator: Decoder | Transformer = made(config, spec, condition)
        self.seer: PatchTransformer | None = None
        if config.pretrained:  # frozen, and part of the run: a training that goes on needs it again
            self.seer = PatchTransformer(config.seer, spec.channels, (spec.height, spec.width))
            self.seer.requires_grad_(False)
        self.encoder = RandomFeatures(spec.channels, config.features, config.edges).requires_grad_(False)

    def seen(self, image: Tensor) -> list[Tensor]:
        """[B, C, H, W] -> the maps of features that samples are compared by, [B, D, h, w] each."""
        return self.encoder(image) + (self.seer.maps(image) if self.seer else [])

    def objectives(self) -> list[Objective]:
        return [Objective("generator", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        c = self.config
        fake, real, among = (self.by_text if self.generator.embedder.kind == "text" else self.by_class)(batch)
        with torch.no_grad():
            wanted = vectors(real, self.seen(real))
        terms = []
        for x, y in zip(vectors(fake, self.seen(fake)), wanted, strict=True):
            at = torch.randperm(x.shape[2], device=x.device)[: c.places]
            x, y = (z[:, :, at].permute(2, 0, 1) for z in (x, y))  # [L, N, D]
            terms.append(drift_loss(drift(x, y, among, c.temperatures)))
        return {"drift": torch.stack(terms).sum()}

    def by_class(self, batch: Batch) -> tuple[Tensor, Tensor, Pairs]:
        """Samples of a few classes [N, C, H, W], the images they are compared with [P, C, H, W], and which with which.

        Without labels all are of one class.
        """
        real, labelled = batch.image, self.generator.embedder.kind == "label"
        none = torch.zeros(len(real), dtype=torch.long, device=real.device)
        image = batch.condition.label if labelled and batch.condition.label is not None else none  # [B]
        rows, sample = self.chosen(image)  # [P], [N]
        guidance = None
        if self.generator.guidance is not None:  # one strength a class, so that rivals were drawn alike
            guidance = self.strengths(torch.rand(len(self.spec.classes), device=real.device))[sample]  # [N]
            rows = torch.cat([rows, (~torch.isin(image, sample)).nonzero()[:, 0]])  # to be guided away from
        real, image = real[rows], image[rows]
        embedded = self.generator.embedder(Condition(len(sample), label=sample))
        return self.generator(self.noise(sample), embedded, guidance), real, pairs(sample, image, guidance)

    def by_text(self, batch: Batch) -> tuple[Tensor, Tensor, Pairs]:
        """As ``by_class``: samples for some texts and as many images, which count as their texts are alike."""
        c, n, text = self.config, len(batch.image), batch.condition.text or [""] * len(batch.image)
        few = min(n, max(1, c.draws // c.each))  # images whose texts are drawn
        sample = torch.arange(few, device=batch.image.device).repeat(c.each)  # [N]
        keep = torch.rand(len(sample), device=sample.device) >= c.condition_dropout
        rows = torch.randperm(n, device=sample.device)[: max(few, len(sample) - 1)]  # [P]
        text = [text[i] for i in rows.tolist()]
        embedded = self.generator.embedder(
            Condition(len(sample), text=[text[i] for i in sample.tolist()]), keep
        )
        among = pairs_alike(trigram_similarity(text).to(sample.device), sample, keep, c.alike)
        return self.generator(self.noise(sample), embedded), batch.image[rows], among

    def chosen(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of ``image`` [B] that a step looks at, [P], and its samples' classes [N], ``draws`` or a few less.

        A class has one sample more than images, so that each sample has as many rivals as images. The nearest of
        many is nearer than the nearest of few: with fewer rivals than images, samples came to lie too far out.
        """
        c, order = self.config, torch.randperm(len(image), device=image.device)
        shuffled = image[order]
        classes = list(dict.fromkeys(shuffled.tolist()))
        most = max(2, c.draws // min(c.together, len(classes)))  # of a class
        rows: list[Tensor] = []
        sample: list[int] = []
        for label in classes:
            room = min(most, c.draws - len(sample))
            if rows and room < 2:
                break
            rows.append(order[shuffled == label][: max(1, room - 1)])
            sample += [label] * (len(rows[-1]) + 1)
        return torch.cat(rows), torch.tensor(sample, device=image.device)

    def noise(self, sample: Tensor) -> Tensor:
        return torch.randn(len(sample), self.generator.latent, device=sample.device)

    def strengths(self, uniform: Tensor) -> Tensor:
        """Uniform numbers -> alpha in [1, guidance], p(alpha) ~ alpha^-power, by the inverse of its distribution."""
        most, power = self.config.guidance, 1 - self.config.guidance_power
        if power == 0:
            return most**uniform
        return (1 + uniform * (most**power - 1)) ** (1 / power)

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """The noise: [B, latent]."""
        return draws.normal(self.generator.latent)

    def paint(self, latent: Tensor, condition: Condition, guidance: float = 1.0) -> Tensor:
        """[B, latent] -> [B, C, H, W] in [-1, 1]."""
        asked = torch.full((len(latent),), guidance, device=latent.device)
        return self.generator(latent, self.generator.embedder(condition), asked).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: DriftingSampling, draws: Draws) -> Iterator[Canvas]:
        """One canvas; without labels, each image's own stream chooses its label."""
        noise = self.generator.truncate(self.latent(condition, draws), sampling.truncation)  # [B, latent]
        if self.generator.embedder.kind == "label" and condition.label is None:
            condition = Condition(condition.size, label=draws.integers(len(self.spec.classes)))
        most = self.config.guidance if self.generator.guidance is not None else 1.0
        if sampling.guidance != 1 and not 1 <= sampling.guidance <= most:
            raise LimnerError(
                f"This run of drifting was trained for guidance from 1 to {most:g}, "
                f"not {sampling.guidance:g}: choose another --guidance."
            )
        picture = self.paint(noise, condition, sampling.guidance)
        yield Canvas(1, 1, lambda: picture)


MUON = {"generator": Optimiser("muon", lr=2e-3, matrix_lr=0.008)}

Drifting.presets = {
    "tiny": Preset(
        DriftingConfig(
            latent=16, widths=(16, 32), blocks=(1, 1), attention=(1,), head=16, embedding=32, fine=8, features=(8, 16),
            draws=16, guidance=3.0, text=TextConfig(width=32, layers=1),
        ),
        Training(batch=16, optimisers=MUON, clip=1.0),
    ),
    "small": Preset(DriftingConfig(bounded=True), Training(batch=128, samples=16, optimisers=MUON, clip=1.0)),
    "base": Preset(
        DriftingConfig(
            latent=256, widths=(128, 256, 512, 512), blocks=(2, 2, 3, 3), attention=(2, 3), embedding=512, fine=64,
            features=(64, 128, 256, 512), places=64, draws=128, together=8, guidance=4.0,
            text=TextConfig(width=512, layers=6, length=512),
        ),
        Training(
            batch=512, optimisers={"generator": Optimiser("muon", lr=5e-4, matrix_lr=0.01)}, flat=0.5, warmup=10_000,
            clip=1.0, average=500_000,
        ),
    ),
    # Deng 2026's B/16 in pixels: generator, kernel, guidance and optimiser. Its features come from networks trained on
    # ImageNet (a masked autoencoder, ConvNeXt-V2), and each step draws 64 samples of each of 128 classes beside
    # 128 images of each: here features are random and a batch is the data's, so its figures are not to be expected.
    "paper": Preset(
        DriftingConfig(
            network="transformer",
            body=DiTBlocks(
                patch=16, width=768, depth=12, heads=12, qk_norm=True, rope=True, swiglu=True, registers=16
            ),
            features=(64, 128, 256, 512, 512), places=64, draws=8192, together=128, guidance=4.0,
            guidance_power=5.0,
        ),
        Training(
            batch=16_384,
            optimisers={"generator": Optimiser("adamw", lr=2e-4, betas=(0.9, 0.95), decay=0.01)},
            schedule="constant", warmup=10_000 * 16_384, clip=2.0, average=6_900 * 16_384,
        ),
        size=(256, 256), channels=3,
    ),
}  # fmt: skip
