"""One-step generation by drifting: in training, samples move towards the data and away from each other.

Deng, Li, Li, Du and He 2026, "Generative Modeling via Drifting". A generator draws an image from noise in one
call. Each step compares its samples with the batch's images in several spaces of features. The drifting field says
where each sample should move, and the generator learns to draw there, without teacher, discriminator or path.
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
    ConditionEmbedding,
    Draws,
    ImageSpec,
    Model,
    Objective,
    Parent,
    Preset,
)
from limner.diffusion.sampling import Guidance
from limner.families._conditioning import ConditionEmbedder, check_guidance, choose_condition
from limner.families._presets import BASE_TEXT, TINY_TEXT, training
from limner.fields import Checked, Share, Truncation
from limner.losses import drift as losses
from limner.networks.decoder import Decoder, DecoderConfig
from limner.networks.imagenet import IMAGENET, imagenet_maps, imagenet_network
from limner.networks.layers import at_least_float32
from limner.networks.random_features import RandomFeatures
from limner.networks.transformers.dit import DiffusionTransformer, DiTBlocks
from limner.networks.transformers.patch import PatchConfig, PatchTransformer
from limner.settings import Optimiser
from limner.text.encoder import TextConfig
from limner.text.similarity import trigram_similarity


@dataclass(frozen=True)
class DriftingConfig:
    condition: Literal["auto", "none", "label", "text"] = "auto"  # auto: label, else text, as the data has it
    network: Literal["decoder", "transformer"] = "decoder"  # decoder: convolutions, quick on a CPU
    decoder: DecoderConfig = field(default_factory=DecoderConfig)  # of the convolutional generator
    body: DiTBlocks = field(default_factory=DiTBlocks)  # of the transformer
    style_tokens: int = 32  # of the transformer: entries drawn at random from a learned codebook, and summed
    style_codes: int = 64  # entries of that codebook
    bounded: bool = False  # a tanh at the end of the generator: pure black and white are easy, for drawings
    feature_widths: tuple[int, ...] = (32, 64, 128)  # channels of the random features, by stage
    edge_gain: float = 4.0  # weight of random filters that sum to 0, relative to the others
    # run of mae, dino or vit in whose features samples are compared as well; or imagenet (needs limner[imagenet]),
    # in whose features the samples should then not be judged alone
    pretrained: str = ""
    feature_encoder: PatchConfig = field(default_factory=PatchConfig)  # the settings of its transformer
    feature_positions: int = 16  # positions of a feature map that a step compares, drawn at random
    samples_per_step: int = 32  # samples of a step, at most
    classes_per_step: int = 2  # classes that a step draws, at least
    samples_per_text: int = 2  # samples per text and step; with only one there is no repulsion between them
    text_temperature: float = 0.1  # how fast a pair loses weight as its texts lose similarity
    condition_dropout: Share = 0.1  # fraction of samples drawn without their text
    text: TextConfig = field(default_factory=TextConfig)  # the text encoder
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)  # of the kernel, in units of the mean distance
    guidance: float = 1.0  # largest guidance scale that is learned, for labels; 1: none
    guidance_power: float = 3.0  # how rarely large scales are trained: p(alpha) ~ alpha^-power


@dataclass(frozen=True)
class DriftingSampling(Checked):
    guidance: Guidance = 1.0  # away from the other classes; 1: none, at most what was trained
    truncation: Truncation = 1.0  # standard deviation of the noise; below 1: safer and less varied


class Generator(nn.Module):
    """Latent [B, latent], condition and guidance scale [B] -> an image [B, C, H, W] of any range.

    The decoder's latent is noise. The transformer's is a noise image, and numbers that choose entries of a style
    codebook by their quantile (Deng 2026, A.2).
    """

    def __init__(self, config: DriftingConfig, spec: ImageSpec, condition: str):
        super().__init__()
        c, size, self.transformer = config, (spec.height, spec.width), config.network == "transformer"
        width = c.body.width if self.transformer else c.decoder.embedding
        self.shape, self.bounded = spec.shape, c.bounded
        self.noise = math.prod(spec.shape) if self.transformer else c.decoder.latent  # what truncation scales
        self.latent = self.noise + (c.style_tokens if self.transformer else 0)
        self.embedder = ConditionEmbedder(condition, len(spec.classes), width, c.text)
        if not self.transformer:
            self.mapping = nn.Sequential(nn.Linear(self.latent, width), nn.SiLU(), nn.Linear(width, width))
        guided = condition == "label" and c.guidance > 1  # away from the other classes
        self.guidance = nn.Linear(1, width, bias=False) if guided else None
        self.body: nn.Module
        if self.transformer:
            self.style = nn.Embedding(c.style_codes, width)
            for table in (self.style, *([self.embedder.label] if condition == "label" else [])):
                nn.init.normal_(table.weight, std=0.02)
            self.body = DiffusionTransformer(
                c.body, spec.channels, spec.channels, size, self.embedder.context
            )
        else:
            self.body = Decoder(c.decoder, spec.channels, size, self.embedder.context)

    def truncate(self, latent: Tensor, truncation: float) -> Tensor:
        """The noise scaled. Styles stay: the codebook has no order, so none is safer than another."""
        return torch.cat([truncation * latent[:, : self.noise], latent[:, self.noise :]], dim=1)

    def forward(
        self, latent: Tensor, condition: ConditionEmbedding, guidance: Tensor | None = None
    ) -> Tensor:
        if self.transformer:
            codes, quantile = len(self.style.weight), torch.special.ndtr(latent[:, self.noise :].float())
            embedding = self.style((quantile * codes).long().clamp(max=codes - 1)).sum(1)  # [B, E]
            x = latent[:, : self.noise].unflatten(1, self.shape)  # [B, C, H, W]
        else:
            x, embedding = latent, self.mapping(latent)  # [B, latent], [B, E]
        if condition.embedding is not None:
            embedding = embedding + condition.embedding  # [B, E]
        if self.guidance is not None and guidance is not None:
            embedding = embedding + self.guidance(guidance.log()[:, None])  # [B, E]
        x = at_least_float32(
            self.body(x, F.silu(embedding), condition.tokens, condition.mask)
        )  # [B, C, H, W]
        return x.tanh() if self.bounded else x


class Drifting(Model):
    Config = DriftingConfig
    Sampling = DriftingSampling
    reads = frozenset({"label", "text"})
    averaged = ("generator",)
    parents: ClassVar[dict[str, Parent]] = {
        "pretrained": Parent(PatchTransformer, "a transformer over patches", config="feature_encoder",
                             weights="feature_encoder", source="body", built_in=(IMAGENET,))
    }  # fmt: skip
    paper = "Deng, Li, Li, Du and He 2026, Generative Modeling via Drifting"
    about = "samples drift to the data during training; no teacher"

    def __init__(self, config: DriftingConfig, spec: ImageSpec):
        super().__init__(config, spec)
        condition = choose_condition(self, "label", "text")
        self.generator = Generator(config, spec, condition)
        self.feature_encoder: PatchTransformer | None = None
        # A run's network is frozen, and part of the checkpoint: resuming needs it.
        if self.parents["pretrained"].is_run(config.pretrained):
            size = (spec.height, spec.width)
            self.feature_encoder = PatchTransformer(config.feature_encoder, spec.channels, size)
            self.feature_encoder.requires_grad_(False)
        self.random_features = RandomFeatures(spec.channels, config.feature_widths, config.edge_gain)
        self.random_features.requires_grad_(False)

    def maps(self, image: Tensor) -> list[Tensor]:
        """[B, C, H, W] -> feature maps [B, D, h, w]."""
        pretrained = self.feature_encoder.feature_maps(image) if self.feature_encoder else []
        if self.config.pretrained == IMAGENET:
            pretrained = imagenet_maps(image)
        return self.random_features(image) + pretrained

    def objectives(self) -> list[Objective]:
        if self.config.pretrained == IMAGENET:
            imagenet_network(torch.device("cpu"))  # refused before training where it is not installed
        return [Objective("generator", self.loss, shown=("energy_distance",))]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The squared drift, summed over the spaces of features, and the energy distance, which falls as it learns."""
        c = self.config
        by_text = self.generator.embedder.kind == "text"
        fake, real, pairs = (self.samples_of_texts if by_text else self.samples_of_classes)(batch)
        with torch.no_grad():
            target = losses.compared_features(real, self.maps(real))
        terms: dict[str, list[Tensor]] = {"energy_distance": [], "squared_drift": []}
        for x, y in zip(losses.compared_features(fake, self.maps(fake)), target, strict=True):
            at = torch.randperm(x.shape[2], device=x.device)[: c.feature_positions]
            x, y = (z[:, :, at].permute(2, 0, 1) for z in (x, y))  # [L, N, D], [L, P, D]
            found = losses.drift(x, y, pairs, c.temperatures)
            terms["energy_distance"].append(found.energy_distance)
            terms["squared_drift"].append(losses.drift_loss(found))
        return {name: torch.stack(values).sum() for name, values in terms.items()}

    def samples_of_classes(self, batch: Batch) -> tuple[Tensor, Tensor, losses.Pairs]:
        """Samples of a few classes [N, C, H, W], images to compare them with [P, C, H, W], and the pairs that count.

        Without labels all are of one class.
        """
        image, label = batch.image, batch.condition.label
        if label is None or self.generator.embedder.kind != "label":
            label = torch.zeros(len(image), dtype=torch.long, device=image.device)  # [B]
        rows, sample = self.choose_samples(label)  # [P], [N]
        guidance = None
        if self.generator.guidance is not None:  # one scale a class, so that rival samples share theirs
            guidance = self.guidance_scales(torch.rand(len(self.spec.classes), device=image.device))[sample]
            rows = torch.cat([rows, (~torch.isin(label, sample)).nonzero()[:, 0]])  # to be guided away from
        condition = self.generator.embedder(Condition(len(sample), label=sample))
        fake = self.generator(self.noise(sample), condition, guidance)
        return fake, image[rows], losses.pairs_by_class(sample, label[rows], guidance)

    def samples_of_texts(self, batch: Batch) -> tuple[Tensor, Tensor, losses.Pairs]:
        """As ``samples_of_classes``: samples of some texts, and images that count as far as their texts are similar."""
        c, n, texts = self.config, len(batch.image), batch.condition.text or [""] * len(batch.image)
        few = min(n, max(1, c.samples_per_step // c.samples_per_text))  # texts
        sample = torch.arange(few, device=batch.image.device).repeat(c.samples_per_text)  # [N]
        keep = torch.rand(len(sample), device=sample.device) >= c.condition_dropout
        rows = torch.randperm(n, device=sample.device)[: max(few, len(sample) - 1)]  # [P]
        texts = [texts[i] for i in rows.tolist()]
        chosen = Condition(len(sample), text=[texts[i] for i in sample.tolist()])
        condition = self.generator.embedder(chosen, keep)
        similarity = trigram_similarity(texts).to(sample.device)
        pairs = losses.pairs_by_similarity(similarity, sample, keep, c.text_temperature)
        return self.generator(self.noise(sample), condition), batch.image[rows], pairs

    def choose_samples(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Images' labels [B] -> rows of images [P] and labels of samples [N], ``samples_per_step`` or fewer.

        A class has one sample more than images, so that each sample has as many rivals as images. The nearest of
        many is nearer than the nearest of few: with fewer rivals than images, samples ended up too far apart.
        """
        c, order = self.config, torch.randperm(len(label), device=label.device)
        shuffled = label[order]
        classes = list(dict.fromkeys(shuffled.tolist()))
        most = max(2, c.samples_per_step // min(c.classes_per_step, len(classes)))  # of a class
        rows: list[Tensor] = []
        sample: list[int] = []
        for index in classes:
            room = min(most, c.samples_per_step - len(sample))
            if rows and room < 2:
                break
            rows.append(order[shuffled == index][: max(1, room - 1)])
            sample += [index] * (len(rows[-1]) + 1)
        return torch.cat(rows), torch.tensor(sample, device=label.device)

    def noise(self, sample: Tensor) -> Tensor:
        """One latent a sample, [N, latent]."""
        return torch.randn(len(sample), self.generator.latent, device=sample.device)

    def guidance_scales(self, uniform: Tensor) -> Tensor:
        """Uniform numbers -> alpha in [1, guidance], p(alpha) ~ alpha^-power, by inverse transform sampling."""
        most, power = self.config.guidance, 1 - self.config.guidance_power
        if power == 0:
            return most**uniform
        return (1 + uniform * (most**power - 1)) ** (1 / power)

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """The noise: [B, latent]."""
        return draws.normal(self.generator.latent)

    def paint(self, latent: Tensor, condition: Condition, guidance: float = 1.0) -> Tensor:
        """[B, latent] -> [B, C, H, W] in [-1, 1]."""
        scale = torch.full((len(latent),), guidance, device=latent.device)
        return self.generator(latent, self.generator.embedder(condition), scale).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: DriftingSampling, draws: Draws) -> Iterator[Canvas]:
        """One canvas; without labels, each image's own stream chooses its label."""
        latent = self.generator.truncate(self.latent(condition, draws), sampling.truncation)  # [B, latent]
        condition = self.with_labels(condition, draws)
        largest = 1.0 if self.generator.guidance is None else self.config.guidance
        check_guidance(self, sampling.guidance, largest)
        picture = self.paint(latent, condition, sampling.guidance)
        yield Canvas(1, 1, lambda: picture)


MUON = Optimiser("muon", lr=2e-3, matrix_lr=0.008)

Drifting.presets = {
    "tiny": Preset(
        DriftingConfig(
            decoder=DecoderConfig(latent=16, widths=(16, 32), blocks=(1, 1), head_width=16, embedding=32,
                                  full_size_width=8),
            feature_widths=(8, 16), samples_per_step=16, guidance=3.0, text=TINY_TEXT,
        ),
        training(MUON, "generator", batch=16, clip=1.0),
    ),
    "small": Preset(DriftingConfig(bounded=True), training(MUON, "generator", batch=128, samples=16, clip=1.0)),
    "base": Preset(
        DriftingConfig(
            decoder=DecoderConfig(latent=256, widths=(128, 256, 512, 512), blocks=(2, 2, 3, 3),
                                  attention_resolutions=(8, 4), embedding=512, full_size_width=64),
            feature_widths=(64, 128, 256, 512), feature_positions=64, samples_per_step=128, classes_per_step=8,
            guidance=4.0, text=BASE_TEXT,
        ),
        training(Optimiser("muon", lr=5e-4, matrix_lr=0.01), "generator", batch=512, flat=0.5, warmup=10_000, clip=1.0,
                 average=500_000),
    ),
    # Deng 2026's B/16 in pixels: generator, kernel, guidance and optimiser. Its features come from networks trained on
    # ImageNet (a masked autoencoder, ConvNeXt-V2), and each step draws 64 samples of each of 128 classes and compares
    # them with 128 images of each. Here features are random and a batch is the data's, so expect other figures.
    "paper": Preset(
        DriftingConfig(
            network="transformer",
            body=DiTBlocks(patch=16, width=768, depth=12, heads=12, qk_norm=True, rope=True, swiglu=True, registers=16),
            feature_widths=(64, 128, 256, 512, 512), feature_positions=64, samples_per_step=8192,
            classes_per_step=128, guidance=4.0, guidance_power=5.0,
        ),
        training(Optimiser("adamw", lr=2e-4, betas=(0.9, 0.95), decay=0.01), "generator", batch=16_384,
                 schedule="constant", warmup=10_000 * 16_384, clip=2.0, average=6_900 * 16_384),
        size=(256, 256), channels=3,
    ),
}  # fmt: skip
