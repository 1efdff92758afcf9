"""The settings of unCLIP, its decoder, and its networks as models that `diffusion.sampling` draws by (Ramesh 2022)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Canvas, Condition, ConditionEmbedding, Denoised, Draws, ImageSpec
from limner.diffusion.objectives import FlowMatching
from limner.diffusion.sampling import (
    GUIDANCE_FLAGS,
    Drawing,
    Guidance,
    Plan,
    SamplingConfig,
    Shift,
    SolverName,
    drive,
)
from limner.families._clip import ClipConfig
from limner.fields import Bounds, Checked, Share
from limner.networks.transformers.sequence import SequenceBlocks
from limner.networks.unets.stage import EmbeddingProjection, StageConfig, StageUNet
from limner.text.encoder import EncodedText, TextConfig
from limner.text.pretrained import text_encoder

PRIOR = SequenceBlocks(128, 4, 4)


@dataclass(frozen=True)
class UnclipConfig(FlowMatching):
    may_be_zero: ClassVar[tuple[str, ...]] = ("blur",)

    clip: str = ""  # run of clip, whose embeddings are drawn; empty: one is trained first
    comparer: ClipConfig = field(default_factory=ClipConfig)  # of the clip that is trained
    # height and width at which clip is trained and sees pictures; default: those of the run
    clip_size: tuple[int, int] | None = None
    # of the prior and the decoder: each number less its mean and over its deviation, or one scale for all
    embeddings: Literal["standardised", "scaled"] = "standardised"
    prior: SequenceBlocks = PRIOR  # the prior's transformer
    prior_every: int = 1  # steps between updates of the prior
    condition_dropout: Share = 0.1  # prior: fraction of training images whose text is left out, for guidance
    decoder: StageConfig = field(default_factory=StageConfig)  # the decoder's U-Net
    decoder_every: int = 1  # steps between updates of the decoder
    read_by: Literal["clip", "own"] = "own"  # decoder: text is encoded by clip, or by an encoder of its own
    text: TextConfig = field(default_factory=TextConfig)  # the decoder's own text encoder
    context: int = 128  # decoder: channels of the tokens that it attends to
    extra_tokens: int = 4  # decoder: tokens made of the embedding, before those of the text
    embedding_dropout: Share = 0.1  # decoder: fraction of training images whose embedding is left out
    caption_dropout: Share = 0.5  # decoder: fraction of training images whose text is left out
    predict: Literal["data", "noise"] = "data"  # decoder and upsampler; data: flow matching; noise: diffusion
    learn_variance: bool = False  # decoder, with noise: learn the variance of the ancestral solver's steps
    # of the upsampler: the decoder draws at the size divided by it; 1: no upsampler
    scale: Literal[1, 2, 4] = 1
    # the upsampler's U-Net
    upsampler: StageConfig = field(
        default_factory=lambda: StageConfig(width=96, multiples=(1, 2), patch=4, attention_resolutions=())
    )
    upsampler_every: int = 1  # steps between updates of the upsampler
    blur: float = 0.6  # upsampler, in training: largest deviation, in pixels, of the blur of the small image
    crop: int = 1  # upsampler with adm, in training: it sees crops of the side divided by this


@dataclass(frozen=True)
class UnclipSampling(Checked):
    """How to sample. Guidance is 1 where training left nothing out."""

    steps: int = 16  # the decoder's steps from noise to image
    guidance: Guidance | None = None  # the decoder's guidance scale; 1: no guidance. Default: 2
    prior_steps: int = 16  # the prior's steps from noise to embedding
    prior_guidance: Guidance | None = None  # the prior's guidance scale. Default: 2
    # embeddings that the prior draws for an image, of which the nearest to the text's is kept
    prior_samples: Annotated[int, Bounds(1, 64)] = 2
    upsampler_steps: int = 8  # the upsampler's steps from noise to image
    solver: SolverName = "unipc"  # of every stage
    shift: Shift = 1.5  # decoder, flow matching: above 1, more of the steps near the noise
    no_text: bool = False  # draw from the embedding alone: the decoder reads no text


@dataclass(eq=False)
class Stage:
    """A network of unclip's as a model that `diffusion.sampling` draws by."""

    spec: ImageSpec
    drops_condition: bool
    drawn: Plan
    embed: Callable[[Condition], ConditionEmbedding]  # a condition without text is none at all
    denoise: Callable[[Tensor, Tensor, Tensor, Tensor, ConditionEmbedding], Denoised]
    guidance_flags: tuple[str, str] = GUIDANCE_FLAGS
    follows: frozenset[str] = frozenset({"text"})
    family: str = "unclip"

    def plan(self, sampling: Any) -> Plan:
        return self.drawn

    @property
    def steps(self) -> int:
        return len(self.drawn.levels) - 1

    def draw(self, condition: Condition, solver: SolverName, guidance: float | None, draws: Draws) -> Drawing:
        return Drawing(self, condition, SamplingConfig(self.steps, solver, guidance), draws)


@dataclass
class Progress:
    """The canvases of several stages, one after the other."""

    total: int  # steps of all stages
    done: int = 0

    def draw(self, drawing: Drawing, picture: Callable[[Tensor], Tensor]) -> Generator[Canvas, None, Tensor]:
        """Yields the canvases of a stage, whose pictures ``picture`` makes of x, and returns its last x."""
        before = self.done
        for step in drive(drawing):
            self.done = before + step.done
            guess = partial(picture, step.denoised) if self.done < self.total else None
            yield Canvas(self.done, self.total, partial(picture, step.x), guess)
        return step.x


class Decoder(nn.Module):
    """Noisy image [B, C, h, w], time [B] in [0, 1] and rows of ``embed`` -> [B, out, h, w]."""

    def __init__(self, config: UnclipConfig, channels: int, size: tuple[int, int], text: tuple[int, int]):
        """``text``: channels of clip's tokens and of its embeddings."""
        c = config
        super().__init__()
        self.text: Any = text_encoder(c.text) if c.read_by == "own" else None
        width, pooled = text if self.text is None else (self.text.width, self.text.pooled_width)
        self.projection = EmbeddingProjection(
            text[1], pooled, width, c.decoder.embedding, c.context, c.extra_tokens
        )
        out = channels * (2 if c.learn_variance else 1)
        self.unet = StageUNet(c.decoder, channels, out, size, c.context)

    def embed(self, embedding: Tensor, texts: Sequence[str], encode: Callable[[Sequence[str]], EncodedText]) -> (
        ConditionEmbedding
    ):  # fmt: skip
        """Embeddings [B, D] and B texts, which ``encode`` encodes where there is no encoder of its own."""
        if self.text is None:
            encoded = encode(texts)
        else:
            encoded = self.text(self.text.pieces(texts).to(embedding.device))
        added, tokens, mask = self.projection(embedding, encoded.pooled, encoded.tokens, encoded.mask)
        return ConditionEmbedding(added, tokens, mask)

    def forward(self, x: Tensor, t: Tensor, rows: ConditionEmbedding) -> Tensor:
        return self.unet(x, t, rows.embedding, rows.tokens, rows.mask)  # [B, out, h, w]


def embedding_scale(width: int) -> float:
    """What embeddings of length 1 are multiplied by, so that their numbers vary as pixels in [-1, 1] do.

    17.2 for a width of 1,024 (Ramesh 2022, appendix C).
    """
    return 17.2 * (width / 1024) ** 0.5


def nearest_to(text: Tensor, samples: Tensor) -> Tensor:
    """text [B, D], samples [B, S, D] -> [B, D], of each image's samples that with the largest cosine (2.2)."""
    cosine = F.cosine_similarity(samples, text[:, None], dim=2)  # [B, S]
    return samples[torch.arange(len(samples), device=samples.device), cosine.argmax(1)]


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """[B, C, H, W] under a Gaussian of 3x3 pixels; its deviations [B, 1, 1, 1] in pixels, 0: as it is."""
    weight = torch.exp(-0.5 / sigma.clamp(min=1e-3) ** 2)
    for axis in (2, 3):
        padding = (0, 0, 1, 1) if axis == 2 else (1, 1, 0, 0)
        padded, length = F.pad(image, padding, mode="replicate"), image.shape[axis]
        before, after = padded.narrow(axis, 0, length), padded.narrow(axis, 2, length)
        image = (image + weight * (before + after)) / (1 + 2 * weight)
    return image
