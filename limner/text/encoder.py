"""Text encoders: a tokeniser (texts -> integer pieces) and a network (pieces -> tokens) that belong together."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import attend, head_count
from limner.networks.layers import zero_init
from limner.text.pieces import PAD, PIECE, START, Cut, cut, to_pieces
from limner.text.vocabulary import VocabularyConfig


@dataclass(frozen=True)
class TextConfig:
    """Settings of the text encoder that is trained with a generator."""

    may_be_zero: ClassVar[tuple[str, ...]] = ("layers",)

    width: int = 128  # channels of a token
    layers: int = 2  # transformer layers
    length: int = 128  # bytes of a text that are read, or tokens of a pretrained encoder; the rest is cut
    # words, or characters where a script has no spaces; bytes: 8 bytes at a time, as before Limner's format 5
    pieces: Cut = "words"
    # frozen text encoder of transformers instead: its folder, or hf:owner/name to fetch it; the run takes its weights
    pretrained: str = ""
    pretrained_settings: str = ""  # settings of that encoder, which training fills in: leave them empty


class EncodedText(NamedTuple):
    """Texts as a network reads them."""

    tokens: Tensor  # [B, L, D]
    mask: Tensor  # [B, L], True except at padding
    pooled: Tensor  # [B, P], a summary of each text


@runtime_checkable
class TextReader(Protocol):
    """Reads texts up to a limit: a text encoder, or a vocabulary."""

    limit: str  # of a text, in words: "128 bytes"

    def read(self, text: str) -> str:
        """The beginning of a text that is read."""
        ...


@runtime_checkable
class TextEncoder(TextReader, Protocol):
    """A tokeniser and its network. The empty text also has a token, so no row of the mask is all False."""

    width: int  # D, channels of a token
    pooled_width: int  # P, channels of the summary

    def pieces(self, texts: Sequence[str]) -> Tensor:
        """B texts -> integers [B, L, ...] on the CPU, padded to the longest of them."""
        ...

    def __call__(self, pieces: Tensor) -> EncodedText: ...


def encoder_of(model: nn.Module, texts: Sequence[str] = ()) -> TextReader | None:
    """The text encoder of a model, or its vocabulary; of several the one that leaves most of the texts unread."""
    readers = [module for module in model.modules() if isinstance(module, TextReader)]
    if len(readers) < 2:
        return next(iter(readers), None)
    return max(readers, key=lambda reader: sum(len(unread(reader, text)) for text in texts))


def unread(encoder: TextReader, text: str) -> str:
    """The end of a text that is not read; "" if all is."""
    return text[len(encoder.read(text)) :].strip()


def short(text: str, length: int = 100) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def length_flag(config: Any, flag: str = "--model") -> str:
    """The flag that raises the length of the texts that a model of this config reads; "" for none."""
    for field in fields(config):
        name, value = f"{flag}.{field.name.replace('_', '-')}", getattr(config, field.name)
        if isinstance(value, (TextConfig, VocabularyConfig)):
            return f"{name}.length"
        if is_dataclass(value) and (inner := length_flag(value, name)):
            return inner
    return ""


class Layer(nn.Module):
    """Self-attention and a two-layer MLP, each behind a LayerNorm and with a residual connection."""

    def __init__(self, width: int, head: int):
        super().__init__()
        self.heads = head_count(width, head)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), zero_init(nn.Linear(width, width))
        self.up, self.down = nn.Linear(width, 3 * width), zero_init(nn.Linear(3 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3 * self.heads, -1)).transpose(1, 2).chunk(3, dim=1)
        h = attend(q, k, v, mask[:, None, None]).transpose(1, 2).flatten(2)  # [B, L, W]
        x = x + self.out(h)  # [B, L, W]
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # [B, L, W]


def attention_pool(x: Tensor, mask: Tensor, queries: Tensor, key: nn.Module, value: nn.Module) -> Tensor:
    """Tokens [B, L, W], their mask [B, L] and learned queries [Q, W] -> a summary [B, Q W]."""
    asked = queries[None, None].expand(len(x), -1, -1, -1)  # [B, 1, Q, W]
    return attend(asked, key(x)[:, None], value(x)[:, None], mask[:, None, None]).flatten(1)


class ByteEncoder(nn.Module):
    """UTF-8 bytes, grouped by word, under a small transformer: any language, no vocabulary.

    A piece's embedding is the sum over its bytes, each by value and position. An MLP over each piece and its two
    neighbours combines words, such as a colour and its noun, before attention has learned to. The summary is
    attention pooling with several learned queries: a mean would lose which word belongs to which.
    """

    def __init__(self, config: TextConfig, head: int = 32, queries: int = 8):
        super().__init__()
        width = config.width
        self.width, self.pooled_width = width, queries * width
        self.length, self.cut = config.length, config.pieces
        self.byte = nn.Embedding(PIECE * (START + 1), width)
        self.position = nn.Parameter(0.5 * torch.randn(config.length + 1, width))
        self.phrase = nn.Sequential(
            nn.LayerNorm(3 * width), nn.Linear(3 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.layers = nn.ModuleList(Layer(width, head) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.normal_(self.byte.weight, std=0.4)

    @property
    def limit(self) -> str:
        return f"{self.length} bytes ({self.length // 3} Chinese characters)"

    def read(self, text: str) -> str:
        return cut(text, self.length)

    def pieces(self, texts: Sequence[str]) -> Tensor:
        """B texts -> [B, L, PIECE] bytes; see ``to_pieces``."""
        return to_pieces(texts, self.length, self.cut)

    def forward(self, pieces: Tensor) -> EncodedText:
        mask = (pieces != PAD).any(2)  # [B, L]
        offsets = torch.arange(PIECE, device=pieces.device) * (START + 1)  # one table for each position
        x = self.byte(pieces + offsets).sum(2) * mask[..., None]  # [B, L, W]
        near = torch.cat([F.pad(x, (0, 0, 1, -1)), x, F.pad(x, (0, 0, -1, 1))], dim=2)  # [B, L, 3W]
        x = x + self.phrase(near) + self.position[: x.shape[1]]  # [B, L, W]
        for layer in self.layers:
            x = layer(x, mask)  # [B, L, W]
        x = self.norm(x) * mask[..., None]  # [B, L, W]
        return EncodedText(x, mask, attention_pool(x, mask, self.queries, self.key, self.value))
