"""Texts -> pieces: UTF-8 bytes, grouped by word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from limner.text.words import words

PAD, START = 256, 257  # after the 256 bytes
PIECE = 8  # bytes in a piece
Cut = Literal["words", "bytes"]


def cut(text: str, length: int) -> str:
    """The first ``length`` bytes of a text in UTF-8, cut between two characters."""
    return text.encode("utf-8", "replace")[:length].decode("utf-8", "ignore")


def to_pieces(texts: Sequence[str], length: int, how: Cut = "words") -> Tensor:
    """Texts -> the bytes of their words [B, L, PIECE], padded with PAD.

    A piece is a word (``limner.text.words``), or a part of a word of more than PIECE bytes, so a word is the same
    pieces wherever it stands. A text longer than ``length`` bytes is cut between two characters. Each text begins
    with a piece that says START, so that the empty text is one too. ``how`` bytes: words are what stands between
    spaces, parted after PIECE bytes, also within a character.
    """
    rows = [_pieces(cut(text, length), how) for text in texts]
    return pad_sequence(rows, batch_first=True, padding_value=PAD).long()


@lru_cache(maxsize=2**15)
def _pieces(text: str, how: Cut) -> Tensor:
    """The pieces of one text, int16 [L, PIECE]."""
    if how == "bytes":
        between = text.encode().split()
        pieces = [word[i : i + PIECE] for word in between for i in range(0, len(word), PIECE)]
    else:
        pieces = [part for start, end, _ in words(text) for part in _parts(text[start:end])]
    rows = [[*piece, *[PAD] * (PIECE - len(piece))] for piece in ([START], *pieces)]
    return torch.tensor(rows, dtype=torch.int16, device="cpu")


def _parts(word: str) -> Iterator[bytes]:
    """A word in parts of at most PIECE bytes, each as long as whole characters allow."""
    while word:
        part = cut(word, PIECE)
        yield part.encode()
        word = word[len(part) :]
