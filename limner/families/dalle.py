"""Text and image as one stream of tokens under one causal transformer.

Ramesh 2021, "Zero-Shot Text-to-Image Generation": row, column and convolutional attention, a padding token of its own
for each text position, text 1/8 and image 7/8 of the loss. By config also minDALL-E's, ruDALL-E's and VQGAN's layouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from limner.core import (
    Batch,
    Canvas,
    Condition,
    Draws,
    ImageSpec,
    LimnerError,
    Model,
    Objective,
    Parent,
    Preset,
)
from limner.families._conditioning import choose_condition
from limner.families._presets import training
from limner.families._token_sampling import Guidance, Temperature, TokenSampling
from limner.families._tokens import (
    BASE_TOKENS,
    DVAE,
    TINY_TOKENS,
    TOKENIZER,
    VQGAN_F16,
    ConfiguredTokenizer,
    TokensConfig,
)
from limner.families._writing import drop_texts, picture_of_rows, texts_of, texts_to_learn
from limner.fields import PositiveShare, Share
from limner.networks.logits import choose, guide, token_loss
from limner.networks.transformers.sequence import SequenceBlocks
from limner.networks.transformers.text_image import StreamLayout, TextImageTransformer, pad_texts
from limner.settings import Optimiser
from limner.text.vocabulary import Vocabulary, VocabularyConfig


@dataclass(frozen=True)
class DALLEConfig:
    tokens: str = ""  # run whose tokens are drawn; empty: a tokenizer is trained first
    tokenizer: TokensConfig = field(default_factory=TokensConfig)  # of the tokenizer that is trained
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)  # of the text
    blocks: SequenceBlocks = field(default_factory=SequenceBlocks)  # of the transformer
    layout: StreamLayout = field(default_factory=StreamLayout)
    all_positions: bool = False  # also text positions that no caption of the training reaches
    # auto: text, else label, whose name is the text
    condition: Literal["auto", "none", "label", "text"] = "auto"
    text_weight: Share = 0.125  # of the text's loss; the image's has the rest
    condition_dropout: Share = 0.1  # fraction of training images whose caption is blanked, for guidance


@dataclass(frozen=True)
class DALLESampling(TokenSampling):
    usual_guidance: ClassVar[float] = 1.5

    # of the logits; below 1: more probable tokens, 0: always the most probable
    temperature: Temperature = 0.85
    top_p: PositiveShare = 0.95  # draw among the most probable tokens whose probabilities reach this sum
    # guidance scale; 1: no guidance. Default: 1.5, or 1 if training blanked no captions (--model.condition-dropout 0)
    guidance: Guidance | None = None
    keep: Share | None = None  # upper share of --image that is kept; the rest is drawn. Default: 0.5
    # keep keys and values of earlier tokens; false: compute all of them again, more slowly
    cache: bool = True


class DALLE(Model):
    Config = DALLEConfig
    Sampling = DALLESampling
    reads = frozenset({"label", "text", "image"})
    averaged = ("network",)
    parents: ClassVar[dict[str, Parent]] = {"tokens": TOKENIZER}
    paper = "Ramesh 2021, Zero-Shot Text-to-Image Generation"
    about = "text and image tokens in one stream, drawn one after another"

    def __init__(self, config: DALLEConfig, spec: ImageSpec):
        super().__init__(config, spec)
        c = config
        condition = choose_condition(self, "text", "label")
        self.tokenizer = ConfiguredTokenizer(c.tokenizer, spec).requires_grad_(False).eval()
        self.vocabulary = Vocabulary(c.vocabulary, trim=not c.all_positions)
        length = c.vocabulary.length if condition != "none" else 0
        codes, grid = self.tokenizer.codes, self.tokenizer.grid
        self.network = TextImageTransformer(c.blocks, c.layout, self.vocabulary.size, length, codes, grid)

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def learn_texts(self, captions: Sequence[str]) -> None:
        super().learn_texts(texts_to_learn(self, captions))

    def text_tokens(self, texts: Sequence[str]) -> Tensor:
        """B texts -> [B, T] pieces and pads; T is 0 where there is no text."""
        positions = self.vocabulary.length if self.network.text_embedding is not None else 0
        pieces = self.vocabulary.encode(texts, positions)
        return pad_texts(pieces, positions, self.vocabulary.size, self.config.layout.pads).to(self.device)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of text and image, each over its own vocabulary and tokens (Ramesh 2021, section 2.2)."""
        c = self.config
        with torch.no_grad():
            image = self.tokenizer.tokenise(batch.image).flatten(1)  # [B, h w]
        texts = drop_texts(texts_of(self, batch.condition), c.condition_dropout)
        text = self.text_tokens(texts)  # [B, T]
        logits = self.network(text, image)
        # Without a start, the first piece is not predicted.
        if logits.text is None or not logits.text.shape[1]:
            return {"image": token_loss(logits.image, image)}
        targets = text[:, text.shape[1] - logits.text.shape[1] :]
        return {
            "text": c.text_weight * token_loss(logits.text, targets),
            "image": (1 - c.text_weight) * token_loss(logits.image, image),
        }

    # ---- drawing

    def sample(self, condition: Condition, sampling: DALLESampling, draws: Draws) -> Iterator[Canvas]:
        """A canvas after each row of tokens; what is not drawn yet is grey. Raises LimnerError, as ``write``."""
        height, width = self.tokenizer.grid
        for image in self.write(condition, sampling, draws):
            yield Canvas(image.shape[1] // width, height, partial(picture_of_rows, self.tokenizer, image))

    @torch.no_grad()
    def write(self, condition: Condition, sampling: DALLESampling, draws: Draws) -> Iterator[Tensor]:
        """The image's tokens so far [B, r w], after each row. Raises LimnerError for settings that do not fit."""
        s, network, (height, width) = sampling, self.network, self.tokenizer.grid
        s.check_top_k(self.tokenizer.codes)
        scale, image = s.guidance_for(self), self.given_tokens(condition, s)  # [B, n]
        texts = texts_of(self, condition if self.drops_condition else self.with_labels(condition, draws))
        text, guided = self.text_tokens(texts), scale != 1 and any(texts)  # [B, T]
        if guided:
            text = torch.cat([text, self.text_tokens([""] * condition.size)])  # [2 B, T]
        kept = network.caches(text) if s.cache else []
        if image.shape[1] == height * width:
            yield image
        while image.shape[1] < height * width:
            with torch.autocast(self.device.type, enabled=False):  # a token near a tie depends on rounding
                logits = network.next_logits(text, image.repeat(1 + guided, 1), kept)
            if guided:
                logits = guide(logits[: condition.size], logits[condition.size :], scale)
            token = choose(logits, draws, s.temperature, s.top_k, s.top_p)  # [B]
            image = torch.cat([image, token[:, None]], dim=1)
            if image.shape[1] % width == 0:
                yield image

    def given_tokens(self, condition: Condition, sampling: DALLESampling) -> Tensor:
        """[B, n], those of the upper part of the condition's image; n is 0 without one. Raises LimnerError."""
        if condition.image is None:
            if sampling.keep is not None:
                raise LimnerError("--keep says how much of an --image is kept: name that image too.")
            return torch.zeros(condition.size, 0, dtype=torch.long, device=self.device)
        share = 0.5 if sampling.keep is None else sampling.keep
        tokens = self.tokenizer.tokenise(condition.image)  # [B, h, w]
        return tokens[:, : round(share * tokens.shape[1])].flatten(1)


MUON = Optimiser("muon", lr=2e-3, matrix_lr=0.02)
PAPER = training(
    Optimiser("adamw", lr=4.5e-4, betas=(0.9, 0.96), decay=0.045), "network", batch=1024, schedule="constant",
    warmup=5_000 * 1024, clip=4.0, average=25 * 1024 * 69.0, average_rampup=0.0,
)  # fmt: skip
PUBLISHED = VocabularyConfig("bpe", 16_384 - 256, length=256, dropout=0.1)
DALLE.presets = {
    "tiny": Preset(
        DALLEConfig(
            tokenizer=TINY_TOKENS, vocabulary=VocabularyConfig("bytes", length=16),
            blocks=SequenceBlocks(width=32, depth=2, heads=2), layout=StreamLayout(attention="sparse", kernel=3),
        ),
        training(Optimiser(lr=1e-2), "network", batch=16, average=100.0),
    ),
    "small": Preset(DALLEConfig(), training(MUON, "network", batch=64, clip=1.0, average=5_000.0)),
    "base": Preset(
        DALLEConfig(
            tokenizer=BASE_TOKENS, vocabulary=VocabularyConfig(merges=16_384 - 256, length=128),
            blocks=SequenceBlocks(width=768, depth=16, heads=12),
        ),
        training(Optimiser("muon", lr=5e-4, matrix_lr=0.01), "network", batch=256, warmup=10_000, clip=1.0,
                 average=50_000.0),
    ),
    # The count of the whole network is ours; the paper gives that of its matrices, 12 depth width^2.
    "paper": Preset(
        DALLEConfig(
            tokenizer=DVAE, vocabulary=PUBLISHED, blocks=SequenceBlocks(width=3968, depth=64, heads=62),
            layout=StreamLayout(attention="sparse"), all_positions=True, condition_dropout=0.0,
        ),
        PAPER, size=(256, 256), channels=3, captions=True,
        parameters={"tokenizer": 97_616_006, "vocabulary": 0, "network": 12_293_832_192},
    ),
    "mindalle": Preset(
        DALLEConfig(
            tokenizer=replace(VQGAN_F16, codes=16_384),
            vocabulary=VocabularyConfig("bpe", 16_384 - 256 - 1, length=64),
            blocks=SequenceBlocks(width=1536, depth=42, heads=24),
            layout=StreamLayout(starts="none", pads="one", positions="each"), all_positions=True, condition_dropout=0.0,
        ),
        PAPER, size=(256, 256), channels=3, captions=True,
        parameters={"tokenizer": 76_073_859, "vocabulary": 0, "network": 1_291_081_728},  # kakaobrain/minDALL-E
    ),
    # VQGAN's own transformer has one vocabulary of 1,024 entries and 512 positions for a condition and an image.
    "vqgan": Preset(
        DALLEConfig(
            tokenizer=VQGAN_F16, vocabulary=VocabularyConfig("bytes", length=256),
            blocks=SequenceBlocks(width=1024, depth=24, heads=16),
            layout=StreamLayout(starts="none", pads="one", positions="each", shared=True), all_positions=True,
            condition_dropout=0.0,
        ),
        PAPER, size=(256, 256), channels=3, captions=True,
        parameters={"tokenizer": 72_141_699, "vocabulary": 0, "network": 304_932_864},  # CompVis/taming-transformers
    ),
}  # fmt: skip
