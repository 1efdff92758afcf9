"""DALL-E mini: an encoder reads the text, and a decoder writes the tokens of the image row by row.

Dayma 2021, "DALL-E Mini": BART's encoder and decoder with NormFormer's norms and gated GELU, over the tokens of a
frozen tokenizer. Super conditioning: guidance away from the empty text, on the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, Objective, Parent, Preset
from limner.families._conditioning import choose_condition
from limner.families._presets import training
from limner.families._token_sampling import TokenSampling
from limner.families._tokens import (
    BASE_TOKENS,
    TINY_TOKENS,
    TOKENIZER,
    VQGAN_F16,
    ConfiguredTokenizer,
    TokensConfig,
)
from limner.families._writing import TextReader, drop_texts, picture_of_rows, texts_of, texts_to_learn
from limner.fields import Share
from limner.networks.checks import SettingsError
from limner.networks.logits import choose, guide, token_loss
from limner.networks.transformers.encoder_decoder import EncoderDecoder
from limner.networks.transformers.sequence import SequenceBlocks
from limner.settings import Optimiser
from limner.text.vocabulary import VocabularyConfig

SMALL_BODY = SequenceBlocks(192, 6, 6, 512, mlp="glu", norms="both", bias=False)


@dataclass(frozen=True)
class DalleMiniConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("text_rows", "image_rows")

    tokens: str = ""  # run of tokens whose tokenizer is used; empty: one is trained first
    tokenizer: TokensConfig = field(default_factory=TokensConfig)  # of the tokenizer that is trained
    body: SequenceBlocks = SMALL_BODY  # blocks of the decoder, and of the encoder
    encoder_depth: int = 2  # blocks of the encoder
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)  # of the text
    # auto: text, else label, whose name is the text
    condition: Literal["auto", "none", "label", "text"] = "auto"
    condition_dropout: Share = 0.1  # fraction of training images whose text is left empty, for guidance
    text_rows: int = 0  # rows of the text embedding; 0: as many as the vocabulary has pieces, and 3
    image_rows: int = 0  # rows of the image embedding; 0: as many as the tokenizer has codes, and 1
    initial_std: float = 0.07  # standard deviation of the initial weights


class DalleMini(Model):
    """The last row of the image embedding is the start of an image; no row from ``tokenizer.codes`` on is drawn."""

    Config = DalleMiniConfig
    Sampling = TokenSampling
    reads = frozenset({"label", "text"})
    averaged = ("network",)
    parents: ClassVar[dict[str, Parent]] = {"tokens": TOKENIZER}
    paper = "Dayma 2021, DALL-E Mini"
    about = "a text encoder, and a decoder that writes tokens row by row"

    def __init__(self, config: DalleMiniConfig, spec: ImageSpec):
        super().__init__(config, spec)
        c = config
        choose_condition(self, "text", "label")
        self.tokenizer = ConfiguredTokenizer(c.tokenizer, spec).requires_grad_(False).eval()
        self.reader = TextReader(c.vocabulary)
        least = {"text_rows": self.reader.rows, "image_rows": self.tokenizer.codes + 1}
        for name, rows in least.items():
            if 0 < getattr(c, name) < rows:
                raise SettingsError(f"{getattr(c, name)} {name} are fewer than the {rows} that there must be")
        text_rows, image_rows = (getattr(c, name) or rows for name, rows in least.items())
        positions = self.tokenizer.grid[0] * self.tokenizer.grid[1]
        self.network = EncoderDecoder(
            c.body, c.encoder_depth, text_rows, self.reader.positions, image_rows, positions, c.initial_std
        )

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def learn_texts(self, captions: Sequence[str]) -> None:
        super().learn_texts(texts_to_learn(self, captions))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The cross-entropy of each token, given the text and the tokens before it."""
        with torch.no_grad():
            tokens = self.tokenizer.tokenise(batch.image).flatten(1)  # [B, L]
        texts = drop_texts(texts_of(self, batch.condition), self.config.condition_dropout)
        return {"tokens": token_loss(self.network(*self.reader(texts, tokens.device), tokens), tokens)}

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: TokenSampling, draws: Draws) -> Iterator[Canvas]:
        """A canvas after each row of tokens, grey below. Raises LimnerError for settings that do not fit the model."""
        s, codes, (height, width) = sampling, self.tokenizer.codes, self.tokenizer.grid
        s.check_top_k(codes)
        scale = s.guidance_for(self)
        texts = texts_of(self, condition if self.drops_condition else self.with_labels(condition, draws))
        copies = 2 if scale != 1 and any(texts) else 1  # the second half of the rows has no text
        with torch.autocast(self.device.type, enabled=False):  # a token near a tie depends on rounding
            text = self.network.read(*self.reader(texts + (copies - 1) * [""] * len(texts), self.device))
        caches = self.network.caches()
        tokens = torch.full((len(texts), 1), self.network.start, device=self.device)  # [B, 1 + n]
        for position in range(height * width):
            with torch.autocast(self.device.type, enabled=False):
                logits = self.network.write(tokens[:, -1:].repeat(copies, 1), text, caches)[:, 0, :codes]
            if copies > 1:
                conditional, unconditional = logits.chunk(2)
                logits = guide(conditional, unconditional, scale)  # [B, codes]
            token = choose(logits, draws, s.temperature, s.top_k, s.top_p)  # [B]
            tokens = torch.cat([tokens, token[:, None]], dim=1)
            if (position + 1) % width == 0:
                done = (position + 1) // width
                yield Canvas(done, height, partial(picture_of_rows, self.tokenizer, tokens[:, 1:]))


PUBLISHED = replace(SMALL_BODY, width=1024, depth=12, heads=16, hidden=2730, norm_scales=False)
MUON = Optimiser("muon", lr=2e-3, matrix_lr=0.02)
# Distributed Shampoo with block 1024 in the original.
PAPER = training(
    Optimiser("adamw", lr=1e-4, betas=(0.9, 0.99)), "network", batch=816, schedule="constant", warmup=2_000 * 816,
    average=0.0,
)  # fmt: skip
DalleMini.presets = {
    "tiny": Preset(
        DalleMiniConfig(
            tokenizer=TINY_TOKENS, vocabulary=VocabularyConfig("bytes", length=16),
            body=replace(SMALL_BODY, width=32, depth=2, heads=2, hidden=64), encoder_depth=1, initial_std=0.3,
        ),
        training(Optimiser(lr=4e-3), "network", batch=16, average=100.0),
    ),
    "small": Preset(DalleMiniConfig(), training(MUON, "network", batch=64, clip=1.0, average=10_000.0)),
    "base": Preset(
        DalleMiniConfig(
            tokenizer=BASE_TOKENS, vocabulary=VocabularyConfig(merges=16_384 - 256, length=128),
            body=replace(SMALL_BODY, width=512, depth=12, heads=8, hidden=1365), encoder_depth=6, initial_std=0.02,
        ),
        training(Optimiser("muon", lr=5e-4, matrix_lr=0.01), "network", batch=256, warmup=10_000, clip=1.0,
                 average=50_000.0),
    ),
    "paper": Preset(
        DalleMiniConfig(
            tokenizer=replace(VQGAN_F16, codes=16_384), body=PUBLISHED, encoder_depth=12,
            vocabulary=VocabularyConfig("bpe", 50_000, length=62), text_rows=50_264, initial_std=0.02,
        ),
        PAPER, size=(256, 256), channels=3,
        parameters={"tokenizer": 76_073_859, "reader": 0, "network": 437_833_712},  # borisdayma/dalle-mini
    ),
    "mega": Preset(
        DalleMiniConfig(
            tokenizer=replace(VQGAN_F16, codes=16_384),
            body=replace(PUBLISHED, width=2048, depth=24, heads=32, hidden=4096), encoder_depth=24,
            vocabulary=VocabularyConfig("bpe", 50_000, length=62), text_rows=50_272, image_rows=16_416,
            initial_std=0.01,
        ),
        replace(PAPER, batch=4_224, warmup=10_000 * 4_224, clip=1.0), size=(256, 256), channels=3,
        parameters={"tokenizer": 76_073_859, "reader": 0, "network": 2_587_521_024},  # borisdayma/dalle-mini
    ),
}  # fmt: skip
