"""One causal transformer over text and then image: DALL-E's (Ramesh 2021, section 2.2), and its ports' layouts.

The stream is: start of text, the text, start of image, the image row by row without its last token. Each position
predicts the next token, text and image each over its own vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from limner.networks.checks import SettingsError
from limner.networks.transformers.sequence import Cache, SequenceBlocks, Transformer, caches, layer_norm
from limner.networks.transformers.sparse import Pattern, published_patterns, stream_mask, visible_keys


@dataclass(frozen=True)
class StreamLayout:
    """What the positions of a stream are, and what each sees."""

    # sparse: row, column and convolutional, in the published order
    attention: Literal["full", "sparse"] = "full"
    kernel: int = 11  # sparse: side of the convolutional window, odd
    # positions before text and image, before text alone, or none
    starts: Literal["both", "text", "none"] = "both"
    pads: Literal["each", "one"] = "each"  # each: a padding token of its own for each text position
    positions: Literal["grid", "each"] = "grid"  # of image positions: row plus column, or a vector for each
    shared: bool = False  # one table of embeddings and one head for text and image tokens, as in VQGAN's code
    head_bias: bool = False  # biases of the heads
    head_norm: bool = False  # a second norm before the heads, as in ruDALL-E


class Logits(NamedTuple):
    """In float32, or float64 where the network is."""

    text: Tensor | None  # [B, T, pieces + pads], of each text token; without a start of text not of the first
    image: Tensor  # [B, h w, codes]


def pad_texts(texts: Sequence[Sequence[int]], positions: int, pieces: int, pads: str = "each") -> Tensor:
    """Pieces of texts, cut to ``positions`` and padded -> [B, positions]; the pad at i is ``pieces`` + i, or is one."""
    pad = [pieces + (i if pads == "each" else 0) for i in range(positions)]
    return torch.tensor([[*text[:positions], *pad[len(text) :]] for text in texts]).view(
        len(texts), positions
    )


class TextImageTransformer(nn.Module):
    """Text [B, T] and image tokens [B, h w] -> ``Logits``. T is at most ``positions``; 0 where there is no text.

    ``pieces`` are the entries of the text's vocabulary without pads, ``codes`` those of the image's. Raises
    SettingsError for an even kernel, and for a stream that begins with neither a start nor text.
    """

    def __init__(
        self, blocks: SequenceBlocks, layout: StreamLayout, pieces: int, positions: int, codes: int,
        grid: tuple[int, int],
    ):  # fmt: skip
        super().__init__()
        width, (height, columns) = blocks.width, grid
        self.layout, self.pieces, self.codes, self.grid = layout, pieces, codes, grid
        if layout.kernel % 2 == 0:
            raise SettingsError(f"a kernel of {layout.kernel} is even, so it has no middle")
        if not positions and layout.starts == "none":
            raise SettingsError("a stream without text needs a start, so starts cannot be none")
        words = pieces + (positions if layout.pads == "each" else 1)
        text = (max(words, codes) if layout.shared else words) if positions else 0  # rows of its table
        self.text_embedding = nn.Embedding(text, width) if text else None
        self.text_head = nn.Linear(width, text, layout.head_bias) if text else None
        self.image_embedding, self.image_head = (
            nn.Embedding(codes, width),
            nn.Linear(width, codes, layout.head_bias),
        )
        if layout.shared and self.text_embedding is not None and self.text_head is not None:
            self.image_embedding, self.image_head = self.text_embedding, self.text_head
        self.starts = nn.Parameter(torch.empty({"both": 2, "text": 1, "none": 0}[layout.starts], width))
        self.text_position = nn.Parameter(torch.empty(positions, width))
        sizes = (height, columns) if layout.positions == "grid" else (height * columns,)
        self.image_positions = nn.ParameterList(nn.Parameter(torch.empty(size, width)) for size in sizes)
        self.transformer = Transformer(blocks)
        self.norm = layer_norm(width)
        self.head_norm = layer_norm(width) if layout.head_norm else nn.Identity()
        self.patterns: list[Pattern] = ["full"] * blocks.depth
        if layout.attention == "sparse":
            self.patterns = published_patterns(blocks.depth)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if "head." in name and parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif "embedding" in name or "position" in name or name == "starts":
                nn.init.normal_(parameter, std=0.25)

    # ---- the stream

    def image(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Image tokens [B, n] from position ``first`` on, with their positions -> [B, n, W]."""
        position, *column = self.image_positions
        if column:  # by row and column
            position = (position[:, None] + column[0]).flatten(0, 1)  # [h w, W]
        return self.image_embedding(tokens) + position[first : first + tokens.shape[1]]

    def prefix(self, text: Tensor) -> Tensor:
        """What stands before the image: starts and text [B, T] -> [B, P, W]."""
        starts = self.starts.expand(len(text), -1, -1)  # [B, 0 to 2, W]
        if self.text_embedding is None:
            return starts
        words = self.text_embedding(text) + self.text_position[: text.shape[1]]  # [B, T, W]
        return torch.cat([starts[:, :1], words, starts[:, 1:]], dim=1)

    def masks(self, prefix: int) -> list[Tensor]:
        """For each block, who sees whom in a stream of so many positions before the image."""
        kernel, device = self.layout.kernel, self.text_position.device
        return [stream_mask(pattern, prefix, self.grid, kernel, device) for pattern in self.patterns]

    def logits(self, head: nn.Linear, h: Tensor) -> Tensor:
        """[B, n, W] -> [B, n, K], outside of autocast."""
        with torch.autocast(h.device.type, enabled=False):
            return head(self.head_norm(self.norm(h.to(head.weight.dtype))))

    def image_logits(self, h: Tensor) -> Tensor:
        """[B, n, W] -> [B, n, codes]; of a shared head, the first."""
        return self.logits(self.image_head, h)[..., : self.codes]

    def forward(self, text: Tensor, image: Tensor) -> Logits:
        stream = torch.cat([self.prefix(text), self.image(image[:, :-1])], dim=1)  # [B, L, W]
        length, count = stream.shape[1], image.shape[1]
        masks = [mask[:length, :length] for mask in self.masks(length - count + 1)]
        h = self.transformer(stream, masks)  # [B, L, W]
        # Text token i is predicted from position i, or without a start of text from position i - 1.
        words = h[:, : text.shape[1] - (len(self.starts) == 0)]  # [B, T, W]
        of_text = None if self.text_head is None else self.logits(self.text_head, words)
        return Logits(of_text, self.image_logits(h[:, -count:]))

    # ---- one token after another

    def caches(self, text: Tensor) -> list[Cache]:
        """Empty ones for the stream of text [B, T] and its image."""
        height, width = self.grid
        return caches(self.transformer.config, text.shape[1] + len(self.starts) + height * width - 1)

    def next_logits(self, text: Tensor, image: Tensor, kept: Sequence[Cache] = ()) -> Tensor:
        """Text [B, T] and the first n image tokens [B, n] -> logits [B, codes] of the next.

        ``kept``: of ``caches``; only positions that they do not hold yet are computed, and they hold them afterwards.
        """
        prefix = text.shape[1] + len(self.starts)
        done, end = kept[0].length if kept else 0, prefix + image.shape[1]
        if done:
            stream = self.image(image[:, done - prefix :], done - prefix)  # [B, end - done, W]
        else:
            stream = torch.cat([self.prefix(text), self.image(image)], dim=1)  # [B, end, W]
        if end - done == 1:
            keys = [
                visible_keys(pattern, prefix, self.grid, self.layout.kernel, stream.device)
                for pattern in self.patterns
            ]
            masks = [None if p == "full" else seen[done] for p, seen in zip(self.patterns, keys, strict=True)]
        else:
            masks = [mask[done:end, :end] for mask in self.masks(prefix)]
        h = self.transformer(stream, masks, kept)[:, -1:]  # [B, 1, W]
        return self.image_logits(h)[:, 0]
