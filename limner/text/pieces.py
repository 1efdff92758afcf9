"""Texts -> pieces: UTF-8 bytes, grouped by word."""

from collections.abc import Sequence

import torch
from torch import Tensor

PAD, START = 256, 257  # after the 256 bytes
PIECE = 8  # bytes in a piece


def cut(text: str, length: int) -> str:
    """The first ``length`` bytes of a text in UTF-8, cut between two characters."""
    return text.encode("utf-8", "replace")[:length].decode("utf-8", "ignore")


def to_pieces(texts: Sequence[str], length: int) -> Tensor:
    """Texts -> the bytes of their words [B, L, PIECE], padded with PAD.

    A piece is a word, or PIECE bytes of a longer one, so that a word looks the same wherever it stands. A
    text longer than ``length`` bytes is cut between two characters. Each text begins with a piece that
    says START, so that the empty text is one too.
    """
    rows = []
    for text in texts:
        words = cut(text, length).encode().split()
        rows.append([word[i : i + PIECE] for word in words for i in range(0, len(word), PIECE)])
    longest = max(map(len, rows), default=0)
    start, none = [START] + [PAD] * (PIECE - 1), [PAD] * PIECE
    filled = [[[*word] + none[len(word) :] for word in row] + [none] * (longest - len(row)) for row in rows]
    return torch.tensor([[start, *row] for row in filled])
