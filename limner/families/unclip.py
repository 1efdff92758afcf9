"""unCLIP: from a text to CLIP's embedding of an image, and from that to images (Ramesh 2022, DALL-E 2).

A diffusion prior draws the embedding of an image that a text may describe, a decoder draws an image from its embedding
and the text, and an upsampler may double or quadruple its size. The decoder alone draws variations of a picture.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import (
    Batch,
    Canvas,
    Condition,
    ConditionEmbedding,
    Denoised,
    Draws,
    ImageSpec,
    Model,
    Objective,
    Parent,
    Preset,
)
from limner.diffusion.objectives import clean_loss, denoised, denoising_loss
from limner.diffusion.paths import STRAIGHT, Discrete, Path, betas
from limner.diffusion.sampling import Plan
from limner.families._clip import BASE, CLIP, L14, TINY, ConfiguredClip
from limner.families._presets import BASE_TEXT, TINY_TEXT, training
from limner.families._unclip import (
    Decoder,
    Progress,
    Stage,
    UnclipConfig,
    UnclipSampling,
    blur,
    embedding_scale,
    nearest_to,
)
from limner.families._writing import drop_texts, texts_of
from limner.networks.interpolation import slerp
from limner.networks.transformers.prior import PriorTransformer
from limner.networks.transformers.sequence import SequenceBlocks
from limner.networks.unets.stage import StageConfig, StageUNet
from limner.settings import LimnerError, Optimiser
from limner.text.encoder import EncodedText

COSINE = Discrete(betas("cosine", 1000))
LARGEST = 10.0  # standardised embeddings are clipped to [-LARGEST, LARGEST]
MEASURED = 10_000  # images from which the mean and the deviation of embeddings are measured


class Unclip(Model):
    """Embeddings are standardised by their mean and deviation, measured on the first images of training."""

    Config = UnclipConfig
    Sampling = UnclipSampling
    reads = frozenset({"text", "image", "blend"})
    averaged = ("prior", "decoder", "upsampler")
    parents: ClassVar[dict[str, Parent]] = {
        "clip": replace(
            CLIP,
            size=lambda config, spec: config.clip_size or (spec.height, spec.width),
            size_flag="--model.clip-size",
        )
    }
    paper = "Ramesh 2022, Hierarchical Text-Conditional Image Generation with CLIP Latents"
    about = "text to CLIP's embedding to image; variations and blends"

    embedding_mean: Tensor
    embedding_square: Tensor
    measured: Tensor

    def __init__(self, config: UnclipConfig, spec: ImageSpec):
        super().__init__(config, spec)
        c, size = config, (spec.height, spec.width)
        if any(side % c.scale for side in size):
            raise LimnerError(
                f"unclip with --model.scale {c.scale} needs sides of a multiple of that, not "
                f"{spec.height}x{spec.width}: choose another --size."
            )
        if c.crop > 1 and (c.upsampler.network == "quick" or any(side % (c.crop * c.scale) for side in size)):
            raise LimnerError(
                f"unclip cannot train an upsampler on crops with --model.crop {c.crop}: use --model.upsampler.network "
                "adm and a --size that it divides, or --model.crop 1."
            )
        self.size, self.base = size, (size[0] // c.scale, size[1] // c.scale)
        self.clip_size = c.clip_size or size
        clip_spec = replace(spec, height=self.clip_size[0], width=self.clip_size[1])
        self.comparer = ConfiguredClip(c.comparer, clip_spec).requires_grad_(False)
        width, tokens = c.comparer.embedding, c.comparer.text.width
        self.prior = PriorTransformer(c.prior, width, tokens, self.comparer.text.length)
        self.decoder = Decoder(c, spec.channels, self.base, (tokens, width))
        channels = spec.channels
        self.upsampler = (
            StageUNet(c.upsampler, 2 * channels, channels, size) if c.scale > 1 else nn.Identity()
        )
        if c.learn_variance and c.predict != "noise":
            raise LimnerError(
                "unclip learns variances beside noise alone: add --model.predict noise, or leave out "
                "--model.learn-variance."
            )
        self.path: Path = COSINE if c.predict == "noise" else STRAIGHT
        self.register_buffer("embedding_mean", torch.zeros(width))
        self.register_buffer("embedding_square", torch.full((width,), 1 / width))
        self.register_buffer("measured", torch.zeros((), dtype=torch.long))

    def objectives(self) -> list[Objective]:
        c = self.config
        objectives = [
            Objective("prior", self.prior_loss, c.prior_every),
            Objective("decoder", self.decoder_loss, c.decoder_every),
        ]
        return objectives + [Objective("upsampler", self.upsampler_loss, c.upsampler_every)] * (c.scale > 1)

    # ---- embeddings

    @torch.no_grad()
    def embed_images(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, D] of length 1."""
        if tuple(image.shape[-2:]) != self.clip_size:
            image = F.interpolate(image, self.clip_size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.comparer.embed_images(image)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> EncodedText:
        """As clip does, with embeddings whose numbers vary as much as those of a token."""
        encoded = self.comparer.encode_texts(texts)
        return encoded._replace(pooled=encoded.pooled * encoded.pooled.shape[1] ** 0.5)

    @torch.no_grad()
    def measure(self, embedding: Tensor) -> None:
        """Take a batch's embeddings [B, D] into their mean and mean square, in the first images of training."""
        if self.training and self.measured < MEASURED:
            self.measured += len(embedding)
            share = len(embedding) / self.measured
            self.embedding_mean.lerp_(embedding.mean(0), share)
            self.embedding_square.lerp_(embedding.square().mean(0), share)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [D] that a standardised embedding is without."""
        if self.config.embeddings == "scaled":
            width = len(self.embedding_mean)
            return torch.zeros_like(self.embedding_mean), torch.full_like(
                self.embedding_mean, 1 / embedding_scale(width)
            )
        return self.embedding_mean, (self.embedding_square - self.embedding_mean**2).clamp(min=1e-8).sqrt()

    def standardise(self, embedding: Tensor) -> Tensor:
        """[B, D] of length 1 -> [B, D], as the prior draws and the decoder reads them."""
        mean, std = self.moments()
        return (embedding - mean) / std

    def restore(self, standardised: Tensor) -> Tensor:
        """The inverse of ``standardise``, of length 1: [..., D] -> [..., D]."""
        mean, std = self.moments()
        return F.normalize(standardised * std + mean, dim=-1)

    # ---- training

    def prior_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The error of the clean embedding (2.2)."""
        embedding = self.embed_images(batch.image)
        self.measure(embedding)
        rows = self.embed_for_prior(
            drop_texts(texts_of(self, batch.condition), self.config.condition_dropout)
        )
        t = COSINE.random_times(len(embedding), embedding.device)
        return clean_loss(lambda x, t: self.call_prior(x, t, rows), self.standardise(embedding), COSINE, t)

    def decoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The error of the image, or of the noise in it, at the decoder's size (2.1)."""
        c, embedding = self.config, self.standardise(self.embed_images(batch.image))
        keep = torch.rand(len(embedding), 1, device=embedding.device) >= c.embedding_dropout
        embedding = torch.where(keep, embedding, self.decoder.projection.absent)
        rows = self.decoder.embed(
            embedding, drop_texts(texts_of(self, batch.condition), c.caption_dropout), self.encode_texts
        )
        return denoising_loss(lambda x, t: self.decoder(x, self.time(t), rows), self.shrink(batch.image), self.path,
                              c.predict, c)  # fmt: skip

    def upsampler_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The error of the image, or of the noise in it, given a blurred small one."""
        c, image = self.config, batch.image
        sigma = c.blur * torch.rand(len(image), 1, 1, 1, device=image.device)
        small = self.enlarge(blur(self.shrink(image), sigma))
        if c.crop > 1:
            height, width = (side // c.crop for side in self.size)
            top, left = (
                int(torch.randint(side - part + 1, ()))
                for side, part in zip(self.size, (height, width), strict=True)
            )
            image, small = (x[..., top : top + height, left : left + width] for x in (image, small))
        return denoising_loss(lambda x, t: self.call_upsampler(x, t, small), image, self.path, c.predict, c)

    def call_upsampler(self, x: Tensor, t: Tensor, small: Tensor) -> Tensor:
        """Where it predicts the image, it predicts what the enlarged ``small`` [B, C, H, W] lacks."""
        out = self.upsampler(torch.cat([x, small], dim=1), self.time(t))  # [B, C, H, W]
        return out + small if self.config.predict == "data" else out

    def time(self, t: Tensor) -> Tensor:
        """The path's times as the U-Nets get them, [B] in [0, 1]."""
        return t / COSINE.steps if isinstance(self.path, Discrete) else t

    def shrink(self, image: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, h, w], as the decoder draws."""
        return image if self.config.scale == 1 else F.avg_pool2d(image, self.config.scale)

    def enlarge(self, image: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, H, W] in [-1, 1], bicubic."""
        image = image if self.config.scale == 1 else F.interpolate(image, self.size, mode="bicubic")
        return image.clamp(-1, 1)

    # ---- stages of drawing

    def embed_for_prior(self, texts: Sequence[str]) -> ConditionEmbedding:
        encoded = self.encode_texts(texts)
        return ConditionEmbedding(encoded.pooled, encoded.tokens, encoded.mask)

    def call_prior(self, x: Tensor, t: Tensor, rows: ConditionEmbedding) -> Tensor:
        return self.prior(x, t, rows.embedding, rows.tokens, rows.mask)  # [B, D]

    def prior_stage(self, sampling: UnclipSampling) -> Stage:
        """x [B, S, D]: several embeddings for each image."""

        def embed(condition: Condition) -> ConditionEmbedding:
            return self.embed_for_prior(condition.text or [""] * condition.size)

        def denoise(
            x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding
        ) -> Denoised:
            samples = x.shape[1]
            each = torch.arange(len(x), device=x.device).repeat_interleave(samples)  # [B S]
            guess = self.call_prior(x.flatten(0, 1), time[each], rows[each])  # [B S, D]
            return Denoised(guess.unflatten(0, (-1, samples)))

        shape = sampling.prior_samples, len(self.embedding_mean)
        plan = Plan(COSINE, COSINE.levels(sampling.prior_steps), shape, clip=LARGEST)
        flags = ("--prior-guidance", "--model.condition-dropout")
        return Stage(self.spec, self.config.condition_dropout > 0, plan, embed, denoise, flags)

    def decoder_stage(self, embedding: Tensor, plan: Plan) -> Stage:
        """Of images with the embeddings [B, D] of length 1."""
        given, projection = self.standardise(embedding), self.decoder.projection

        def embed(condition: Condition) -> ConditionEmbedding:
            read = given if condition.text is not None else projection.absent.expand_as(given)
            return self.decoder.embed(read, condition.text or [""] * condition.size, self.encode_texts)

        def denoise(
            x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding
        ) -> Denoised:
            return denoised(
                self.config.predict, self.path, x, self.decoder(x, self.time(time), rows), alpha, sigma
            )

        flags = ("--guidance", "--model.embedding-dropout")
        return Stage(self.spec, self.config.embedding_dropout > 0, plan, embed, denoise, flags)

    def upsampler_stage(self, small: Tensor, plan: Plan) -> Stage:
        """Of images whose small ones are [B, C, h, w]."""
        small = self.enlarge(small)  # [B, C, H, W]

        def denoise(
            x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding
        ) -> Denoised:
            out = self.call_upsampler(x, time, small)
            return denoised(self.config.predict, self.path, x, out, alpha, sigma)

        return Stage(self.spec, False, plan, lambda condition: ConditionEmbedding(), denoise)

    def decoder_plan(self, sampling: UnclipSampling) -> Plan:
        return self.pixel_plan(self.base, sampling.steps, sampling.shift)

    def upsampler_plan(self, sampling: UnclipSampling) -> Plan | None:
        return self.pixel_plan(self.size, sampling.upsampler_steps, 1.0) if self.config.scale > 1 else None

    def pixel_plan(self, size: tuple[int, int], steps: int, shift: float) -> Plan:
        shape = (self.spec.channels, *size)
        if isinstance(self.path, Discrete):
            return Plan(COSINE, COSINE.levels(steps), shape, clip=1.0)
        return Plan(STRAIGHT, STRAIGHT.levels(steps, shift), shape)

    # ---- drawing

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: UnclipSampling, draws: Draws) -> Iterator[Canvas]:
        """Grey while the prior draws. Of a blend, which no one text describes, the decoder reads none."""
        s, blend, size = sampling, condition.blend, condition.size
        plans = self.decoder_plan(s), self.upsampler_plan(s)
        prior, ends = self.prior_stage(s), [condition] if blend is None else [condition, blend.other]
        drawn = sum(end.image is None for end in ends)
        progress = Progress(drawn * prior.steps + sum(len(plan.levels) - 1 for plan in plans if plan))
        embeddings = []
        for end in ends:
            embeddings.append((yield from self.draw_embedding(end, prior, s, draws, progress)))
        embedding = embeddings[0]
        if blend is not None:
            embedding = slerp(embedding, embeddings[1], blend.share)[range(size), range(size)]  # [B, D]
        texts = [""] * size if s.no_text or blend is not None else condition.text or [""] * size
        decoder = self.decoder_stage(embedding, plans[0])
        drawing = decoder.draw(Condition(size, text=texts), s.solver, s.guidance, draws)
        image = yield from progress.draw(drawing, self.enlarge)
        if plans[1]:
            upsampler = self.upsampler_stage(image.clamp(-1, 1), plans[1])
            yield from progress.draw(upsampler.draw(Condition(size), s.solver, None, draws), self.enlarge)

    def draw_embedding(
        self, condition: Condition, prior: Stage, sampling: UnclipSampling, draws: Draws, progress: Progress
    ) -> Generator[Canvas, None, Tensor]:
        """Returns the embeddings [B, D] of given pictures, or those that the prior draws."""
        if condition.image is not None:
            return self.embed_images(condition.image)
        s, grey = sampling, torch.zeros(condition.size, *self.spec.shape)
        drawing = prior.draw(
            Condition(condition.size, text=condition.text), s.solver, s.prior_guidance, draws
        )
        samples = yield from progress.draw(drawing, lambda x: grey)  # [B, S, D]
        assert drawing.rows.embedding is not None
        return nearest_to(drawing.rows.embedding, self.restore(samples))


TINY_STAGE = StageConfig(width=16, multiples=(1, 2), cross_attention_resolutions=(16,), head_width=16)
KARLO = StageConfig("adm", width=320, multiples=(1, 2, 3, 4), blocks=3, attention_resolutions=(32, 16, 8))
MUON = Optimiser("muon", lr=2e-3, matrix_lr=0.008)
STAGES = Unclip.averaged

Unclip.presets = {
    "tiny": Preset(
        UnclipConfig(
            comparer=TINY, prior=SequenceBlocks(32, 1, 2), decoder=TINY_STAGE, text=TINY_TEXT, context=32, scale=2,
            upsampler=replace(TINY_STAGE, attention_resolutions=()), blur=2.0,  # smooth pictures would not show less
        ),
        training(Optimiser(lr=4e-3), *STAGES, batch=16, average=100.0),
    ),
    "small": Preset(UnclipConfig(), training(MUON, *STAGES, batch=32, samples=16, clip=1.0)),
    "base": Preset(
        UnclipConfig(
            comparer=BASE, prior=SequenceBlocks(512, 12, 8), text=BASE_TEXT, context=512,
            decoder=StageConfig(width=128, multiples=(1, 2, 4), blocks=2, attention_resolutions=(8, 4), dropout=0.1),
        ),
        training(Optimiser("muon", lr=5e-4, matrix_lr=0.01), *STAGES, batch=256, flat=0.5, warmup=10_000, clip=1.0,
                 average=500_000.0),
    ),
    # Karlo's form of it at 256x256, with the 24 blocks of the paper's prior; the upsampler is one of its two.
    "paper": Preset(
        UnclipConfig(
            comparer=L14, clip_size=(224, 224), prior=SequenceBlocks(2048, 24, 32), decoder=KARLO, read_by="clip",
            context=1536, predict="noise", learn_variance=True, scale=4, crop=4,
            upsampler=replace(KARLO, attention_resolutions=(), scale_shift=False),
        ),
        training(Optimiser("adamw", lr=1.2e-4, betas=(0.9, 0.999), decay=0.06), *STAGES, batch=2048,
                 schedule="constant", average=0.0),
        size=(256, 256), channels=3,
        parameters={"comparer": 427_616_513, "prior": 1_223_461_632, "decoder": 893_318_086, "upsampler": 691_579_523},
    ),
}  # fmt: skip
