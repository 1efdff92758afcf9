"""CLIP's network, images and texts in one space, for the family that trains it and those that stand on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Compares, ImageSpec, Parent
from limner.losses.contrastive import LARGEST, START
from limner.networks.layers import at_least_float32
from limner.networks.transformers.sequence import SequenceBlocks
from limner.networks.transformers.towers import CausalTower, ImageTower, Patches, projection
from limner.text.encoder import EncodedText
from limner.text.vocabulary import Vocabulary, VocabularyConfig

IMAGE = SequenceBlocks(width=128, depth=4, heads=4)
TEXT = SequenceBlocks(width=128, depth=4, heads=4)  # with 2 blocks the order of two things is not learnt


@dataclass(frozen=True)
class ClipConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("hard_negatives",)

    embedding: int = 128  # dimension of the common space
    patches: Patches = field(default_factory=Patches)  # tokens of an image
    image: SequenceBlocks = IMAGE  # transformer over patches
    text: SequenceBlocks = TEXT  # causal transformer over pieces
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)  # pieces of texts
    # texts of no image for each image, each with one word of its caption changed for that of another caption
    hard_negatives: int = 7


def frame(pieces: Sequence[Sequence[int]], start: int, end: int, length: int) -> Tensor:
    """Each text's pieces between ``start`` and ``end`` [B, L], padded with 0; one that is cut keeps its end."""
    rows = [[start, *text[: length - 2], end] for text in pieces]
    longest = max(map(len, rows), default=0)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def end_of(ids: Tensor) -> Tensor:
    """[B, L] ids -> [B] the position of end-of-text, the largest id."""
    return ids.argmax(1)


class ConfiguredText(nn.Module):
    """Texts -> tokens of a causal transformer and, from the one at end-of-text, an embedding of length 1."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        c = config
        self.vocabulary = Vocabulary(c.vocabulary)
        self.start, self.end = self.vocabulary.size, self.vocabulary.size + 1
        self.length = c.vocabulary.length + 2  # pieces, start and end
        self.width, self.pooled_width = c.text.width, c.embedding
        self.tower = CausalTower(c.text, self.end + 1, self.length)
        self.projection = projection(c.text.width, c.embedding)

    @property
    def limit(self) -> str:
        return self.vocabulary.limit

    def read(self, text: str) -> str:
        return self.vocabulary.read(text)

    def pieces(self, texts: Sequence[str]) -> Tensor:
        """B texts -> ids [B, L], with start and end."""
        return frame(self.vocabulary.encode(texts), self.start, self.end, self.length)

    def forward(self, pieces: Tensor) -> EncodedText:
        position = end_of(pieces)  # [B]
        tokens = self.tower(pieces)  # [B, L, W]
        rows = torch.arange(len(pieces), device=pieces.device)
        mask = torch.arange(pieces.shape[1], device=pieces.device) <= position[:, None]  # [B, L]
        pooled = F.normalize(at_least_float32(self.projection(tokens[rows, position])), dim=1)  # [B, D]
        return EncodedText(tokens, mask, pooled)


class ConfiguredClip(nn.Module):
    """Images and texts -> embeddings of length 1 in one space, by its ``config``."""

    def __init__(self, config: ClipConfig, spec: ImageSpec):
        super().__init__()
        c, size = config, (spec.height, spec.width)
        self.config = config
        self.image = ImageTower(c.image, c.patches, spec.channels, size, c.embedding)
        self.text = ConfiguredText(c)
        self.log_scale = nn.Parameter(torch.tensor(START))

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """The scale, the biases and the norms, which weight decay leaves as they are."""
        return [parameter for parameter in self.parameters() if parameter.ndim < 2]

    @property
    def scale(self) -> float:
        """What cosines are multiplied by, 1 to 100."""
        log_scale = START if self.log_scale.is_meta else float(self.log_scale.detach())
        return math.exp(min(max(log_scale, 0.0), LARGEST))

    def embed_images(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, D] of length 1."""
        return F.normalize(at_least_float32(self.image(image)), dim=1)

    def encode_texts(self, texts: Sequence[str]) -> EncodedText:
        """Tokens [B, L, W] of the text tower, their mask, and the embeddings [B, D] of length 1."""
        return self.text(self.text.pieces(texts).to(self.log_scale.device))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> [B, D] of length 1."""
        return self.encode_texts(texts).pooled


CLIP = Parent(
    Compares, "a network that compares images with texts", "comparer", "comparer", source="comparer", family="clip"
)  # fmt: skip

TINY = ClipConfig(
    embedding=32,
    image=SequenceBlocks(32, 2, 2),
    text=SequenceBlocks(32, 1, 2),
    vocabulary=VocabularyConfig(length=30),
    hard_negatives=0,
)
BASE = ClipConfig(
    512,
    Patches(across=16),
    SequenceBlocks(384, 12, 6),
    SequenceBlocks(384, 8, 6),
    VocabularyConfig(length=126),
    hard_negatives=1,
)


# OpenAI's models, of 49,408 pieces of text.
def quick(width: int, depth: int, heads: int) -> SequenceBlocks:
    return SequenceBlocks(width, depth, heads, mlp="quick_gelu")


PUBLISHED = ClipConfig(
    embedding=512, patches=Patches(32, embed="fold"), image=quick(768, 12, 12), text=quick(512, 12, 8),
    vocabulary=VocabularyConfig(kind="bpe", merges=49_408 - 256 - 2, length=75), hard_negatives=0,
)  # fmt: skip
B16 = replace(PUBLISHED, patches=Patches(16, embed="fold"))
L14 = replace(
    PUBLISHED,
    embedding=768,
    patches=Patches(14, embed="fold"),
    image=quick(1024, 24, 16),
    text=quick(768, 12, 12),
)
