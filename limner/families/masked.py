"""Hidden tokens: a transformer guesses all tokens of an image at once, and an image is drawn in a few calls.

Chang 2022, "MaskGIT": in each call the most confident tokens are kept, or those that Halton's sequence meets next
(Besnier 2025). Texts are read as in Muse (Chang 2023), classes as in MaskGIT. Repaints any part of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, Literal

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
from limner.diffusion.sampling import shrink_mask
from limner.families._conditioning import ConditionEmbedder, choose_condition, embed_condition
from limner.families._presets import BASE_TEXT, TINY_TEXT, training
from limner.families._token_sampling import TokenSampling
from limner.families._tokens import (
    BASE_TOKENS,
    TINY_TOKENS,
    TOKENIZER,
    VQGAN_F16,
    ConfiguredTokenizer,
    TokensConfig,
)
from limner.fields import Bounds, PositiveShare, Share, ShareBelow1
from limner.networks.logits import choose, guide, remove_smoothing
from limner.networks.transformers.masked import MaskedTransformer, halton_order, hidden_after
from limner.networks.transformers.sequence import SequenceBlocks
from limner.settings import Optimiser
from limner.text.encoder import TextConfig


@dataclass(frozen=True)
class MaskedConfig:
    tokens: str = ""  # run of tokens whose tokenizer is used; empty: one is trained first
    tokenizer: TokensConfig = field(default_factory=TokensConfig)  # of the tokenizer that is trained
    body: SequenceBlocks = field(default_factory=SequenceBlocks)  # of the transformer
    text: TextConfig = field(default_factory=TextConfig)  # the text encoder; Muse's is a pretrained T5
    condition: Literal["auto", "none", "label", "text"] = "auto"  # auto: text, else label, as the data has it
    condition_dropout: Share = 0.1  # fraction of training images whose condition is left out, for guidance
    label_smoothing: ShareBelow1 = 0.1  # probability that is spread over all codes in the loss
    initial_std: float = 0.07  # standard deviation of the initial weights


@dataclass(frozen=True)
class MaskedSampling(TokenSampling):
    steps: Annotated[int, Bounds(1, 2**20)] = 8  # calls of the network, each for several tokens
    # which tokens a call keeps: the most confident, or those far apart, by Halton's sequence
    order: Literal["confidence", "halton"] = "confidence"
    # order=confidence: noise on the confidence, which falls to 0 with the calls; 0: none, 4.5: the paper's
    choice_temperature: Annotated[float, Bounds(0, 1000)] = 1.0
    strength: PositiveShare = 0.7  # with an image and no mask: share of its tokens that are drawn anew


class Network(nn.Module):
    """Tokens [B, L], some of them hidden, and a condition -> logits [B, L, codes]."""

    def __init__(self, config: MaskedConfig, codes: int, positions: int, condition: str, classes: int):
        super().__init__()
        c = config
        self.embedder = ConditionEmbedder(condition, classes, c.body.width, c.text)
        prefix, context = condition != "none", self.embedder.context
        self.body = MaskedTransformer(c.body, codes, positions, prefix, context, c.initial_std)
        if condition == "label":
            nn.init.normal_(self.embedder.label.weight, std=c.initial_std)

    def forward(self, tokens: Tensor, rows: ConditionEmbedding) -> Tensor:
        return self.body(tokens, rows.embedding, rows.tokens, rows.mask)


class Masked(Model):
    Config = MaskedConfig
    Sampling = MaskedSampling
    reads = frozenset({"label", "text", "image", "mask"})
    averaged = ("network",)
    parents: ClassVar[dict[str, Parent]] = {"tokens": TOKENIZER}
    paper = "Chang 2022, MaskGIT: Masked Generative Image Transformer"
    about = "guesses hidden tokens, all at once: an image in a few calls"

    order: Tensor  # [L], the positions of tokens by Halton's sequence

    def __init__(self, config: MaskedConfig, spec: ImageSpec):
        super().__init__(config, spec)
        c, condition = config, choose_condition(self, "text", "label")
        self.tokenizer = ConfiguredTokenizer(c.tokenizer, spec).requires_grad_(False).eval()
        height, width = self.tokenizer.grid
        self.hidden = self.tokenizer.codes  # the token of a position that is hidden
        self.network = Network(c, self.hidden, height * width, condition, len(spec.classes))
        self.register_buffer("order", halton_order((height, width)), persistent=False)

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    # ---- learning

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The cross-entropy of the hidden tokens, a share cos(pi r / 2) of an image's, r uniform (Chang 2022, 3.2)."""
        c = self.config
        with torch.no_grad():
            tokens = self.tokenizer.tokenise(batch.image).flatten(1)  # [B, L]
        share = torch.cos(math.pi / 2 * torch.rand(len(tokens), 1, device=tokens.device))  # [B, 1]
        count = (share * tokens.shape[1]).round().clamp(min=1)  # [B, 1]
        hidden = torch.rand(tokens.shape, device=tokens.device).argsort(1).argsort(1) < count  # [B, L]
        rows = self.network.embedder.with_dropout(batch, c.condition_dropout)
        logits = self.network(tokens.masked_fill(hidden, self.hidden), rows)  # [B, L, codes]
        return {"tokens": F.cross_entropy(logits[hidden], tokens[hidden], label_smoothing=c.label_smoothing)}

    embed = embed_condition

    # ---- drawing

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: MaskedSampling, draws: Draws) -> Iterator[Canvas]:
        """A canvas after each call. Raises LimnerError for settings that do not fit the model."""
        s = sampling
        s.check_top_k(self.tokenizer.codes)
        scale = s.guidance_for(self)
        if not self.drops_condition:
            condition = self.with_labels(condition, draws)
        tokens = self.given_tokens(condition, s, draws)  # [B, L], those to be drawn hidden
        left = [hidden_after(int(count), s.steps) for count in (tokens == self.hidden).sum(1)]
        own = torch.tensor(
            [[max(1, len(row))] for row in left], device=tokens.device
        )  # [B, 1], calls of each
        calls = int(own.max())
        with torch.autocast(self.device.type, enabled=False):  # a token near a tie depends on rounding
            asked = [condition]
            if scale != 1 and (condition.text is not None or condition.label is not None):
                asked.append(Condition(condition.size))
            rows = ConditionEmbedding.cat([self.embed(one) for one in asked])
        for call in range(calls):
            with torch.autocast(self.device.type, enabled=False):
                both = self.network(tokens.repeat(len(asked), 1), rows)  # [B or 2 B, L, codes]
            logits, *without = both.chunk(len(asked))  # [B, L, codes]
            if without:
                logits = guide(logits, without[0], scale)
            logits = remove_smoothing(logits, self.config.label_smoothing)
            drawn = choose(logits, draws, s.temperature, s.top_k, s.top_p)  # [B, L]
            guess = torch.where(tokens == self.hidden, drawn, tokens)  # [B, L]
            noise = (1 - (call + 1) / own).clamp(min=0)  # [B, 1]
            first = self.priority(tokens, guess, logits, noise, s, draws)  # [B, L]
            hide = torch.tensor(
                [[call < len(row) and row[call]] for row in left], device=tokens.device
            )  # [B, 1]
            tokens = guess.masked_fill(first.argsort(1).argsort(1) < hide, self.hidden)
            picture = partial(self.picture, guess, tokens == self.hidden, condition)
            yield Canvas(call + 1, calls, picture, partial(self.picture, guess, None, condition))

    def given_tokens(self, condition: Condition, sampling: MaskedSampling, draws: Draws) -> Tensor:
        """[B, L]: those of the condition's image, and hidden ones where it is marked, or a share of them, or all."""
        length = len(self.order)
        if condition.image is None:
            return torch.full((condition.size, length), self.hidden, device=self.device)
        tokens = self.tokenizer.tokenise(condition.image).flatten(1)  # [B, L]
        if condition.mask is not None:
            marked = shrink_mask(
                condition.mask.float(), self.tokenizer.grid, self.tokenizer.cell
            )  # [B, 1, h, w]
            marked = marked.flatten(1) > 0  # [B, L]
        else:
            count = max(1, round(sampling.strength * length))
            marked = draws.uniform(length).argsort(1).argsort(1) < count  # [B, L]
        return tokens.masked_fill(marked, self.hidden)

    def priority(
        self, tokens: Tensor, guess: Tensor, logits: Tensor, noise: Tensor, sampling: MaskedSampling, draws: Draws
    ) -> Tensor:  # fmt: skip
        """[B, L]: of the hidden tokens, those with the largest are kept first; infinite for the known ones.

        ``noise`` [B, 1]: share of the choice temperature (Chang 2022, appendix: Gumbel noise on the log probabilities).
        """
        if sampling.order == "halton":
            rank = -self.order.argsort().float().expand_as(guess)  # [B, L]
        else:
            rank = logits.log_softmax(-1).gather(-1, guess[..., None])[..., 0]  # [B, L]
            gumbel = -torch.log(-torch.log(draws.uniform(guess.shape[1]).clamp(1e-7, 1 - 1e-7)))  # [B, L]
            rank = rank + sampling.choice_temperature * noise * gumbel
        return rank.masked_fill(tokens != self.hidden, math.inf)

    def picture(self, tokens: Tensor, hidden: Tensor | None, condition: Condition) -> Tensor:
        """[B, C, H, W] in [-1, 1], 0 where tokens are ``hidden``; outside a mask exactly the given pixels."""
        grid, cell = self.tokenizer.grid, self.tokenizer.cell
        image = self.tokenizer.detokenise(tokens.unflatten(1, grid))  # [B, C, H, W]
        if hidden is not None and hidden.any():
            cells = hidden.unflatten(1, grid)[:, None].repeat_interleave(cell, 2).repeat_interleave(cell, 3)
            image = image.masked_fill(cells[..., : image.shape[2], : image.shape[3]], 0)
        if condition.image is None or condition.mask is None:
            return image
        return torch.where(condition.mask > 0, image, condition.image)


MUON = Optimiser("muon", lr=2e-3, matrix_lr=0.02)
Masked.presets = {
    "tiny": Preset(
        MaskedConfig(
            tokenizer=TINY_TOKENS, text=TINY_TEXT, initial_std=0.3,
            body=SequenceBlocks(width=32, depth=2, heads=2, norms="both"),
        ),
        training(Optimiser(lr=4e-3), "network", batch=16, average=100.0),
    ),
    "small": Preset(MaskedConfig(), training(MUON, "network", batch=64, clip=1.0, average=10_000.0)),
    "base": Preset(
        MaskedConfig(
            tokenizer=BASE_TOKENS, text=BASE_TEXT,
            body=SequenceBlocks(width=768, depth=16, heads=12), initial_std=0.02,
        ),
        training(Optimiser("muon", lr=5e-4, matrix_lr=0.01), "network", batch=256, warmup=10_000, clip=1.0,
                 average=50_000.0),
    ),
    # ImageNet at 256x256, on 16x16 tokens of 1,024 codes, in the form of TiTok's code (bytedance/1d-tokenizer).
    "paper": Preset(
        MaskedConfig(
            tokenizer=VQGAN_F16, body=SequenceBlocks(768, 24, 16, 3072, norms="after"), initial_std=0.02,
        ),
        training(Optimiser("adamw", lr=1e-4, betas=(0.9, 0.96), decay=0.045), "network", batch=256, warmup=5_000 * 256,
                 schedule="constant", average=1_774_000.0, average_rampup=0.0),
        size=(256, 256), channels=3, classes=1000,
        parameters={"tokenizer": 72_141_699, "network": 172_652_800},
    ),
}  # fmt: skip
