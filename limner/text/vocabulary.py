"""A vocabulary for models that predict text: bytes, or byte pairs learnt from a run's own captions (Sennrich 2016)."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from limner.fields import Bounds, ShareBelow1
from limner.settings import need
from limner.text.words import words

BYTES = 256  # pieces that are a byte each; a merge of two pieces follows for each further one


@dataclass(frozen=True)
class VocabularyConfig:
    """Settings of the pieces that a text is cut into."""

    # bpe: byte pairs, which the package tokenizers learns; auto: bpe where that is installed, else bytes
    kind: Literal["auto", "bytes", "bpe"] = "auto"
    merges: Annotated[int, Bounds(1, 2**17)] = 1_024  # byte pairs that are learnt at most
    length: int = 64  # pieces of a text that are read; the rest is cut
    dropout: ShareBelow1 = 0.0  # probability to leave out a merge in training (BPE dropout, Provilkov 2020)


class Vocabulary(nn.Module):
    """Texts <-> pieces, integers from 0 to ``size`` - 1. Nothing is unknown: the first 256 pieces are the bytes.

    A word is the same pieces wherever it stands: words of letters begin with a space, whatever stands before them,
    and no piece reaches over the end of a word (``limner.text.words``). The merges are a buffer of a fixed shape, so
    a run's file holds its vocabulary, and only learning needs the package tokenizers. ``trim``: no more pieces of a
    text are read than the longest caption has that it learnt from.
    """

    merges: Tensor  # [config.merges, 2], int32: the pieces that each merge joins; -1: not learnt
    longest: Tensor | None  # pieces that are read, with ``trim``

    def __init__(self, config: VocabularyConfig, trim: bool = False):
        super().__init__()
        self.config = config
        self.register_buffer("longest", torch.tensor(config.length) if trim else None)
        rows = 0 if config.kind == "bytes" else config.merges
        self.register_buffer("merges", torch.full((rows, 2), -1, dtype=torch.int32))
        self._ranks: dict[tuple[int, int], int] | None = None  # of the merges, once they are needed
        self._cut_words: dict[bytes, list[int]] = {}

    @property
    def size(self) -> int:
        """Pieces that there may be; those of merges that were not learnt never occur."""
        return BYTES + len(self.merges)

    @property
    def learnt(self) -> int:
        """Merges that were learnt."""
        return len(self._merge_ranks())

    @property
    def lacks_package(self) -> bool:
        """Whether bytes must do, for want of the package tokenizers."""
        return self.config.kind == "auto" and importlib.util.find_spec("tokenizers") is None

    @property
    def length(self) -> int:
        """Pieces of a text that are read at most."""
        return self.config.length if self.longest is None else int(self.longest)

    @property
    def limit(self) -> str:
        return f"{self.length} pieces"

    def learn(self, captions: Sequence[str]) -> None:
        """Learn from captions. Raises LimnerError for kind bpe without the package tokenizers."""
        if self.config.kind != "bytes" and not self.lacks_package:
            self._learn_pieces(captions)
        if self.longest is not None and captions and not self.config.dropout:  # which makes texts longer
            found = max(len(self._encode(text, self.config.length, whole=True)[0]) for text in {*captions})
            # With room for words that no caption has, which are more pieces.
            self.longest.fill_(min(found + max(found // 2, 8), self.config.length))

    def _learn_pieces(self, captions: Sequence[str]) -> None:
        why = "A vocabulary of kind bpe is learnt by the package tokenizers; one of kind bytes needs none"
        found = _learn_merges(need("tokenizers", why, "text"), captions, len(self.merges))
        table = found + [(-1, -1)] * (len(self.merges) - len(found))
        self.merges.copy_(torch.tensor(table, dtype=torch.int32))
        self._forget()

    def encode(self, texts: Sequence[str], length: int | None = None) -> list[list[int]]:
        """The pieces of each text, at most ``length`` (None: the config's): longer texts are cut between characters."""
        return [self._encode(text, self._length(length))[0] for text in texts]

    def read(self, text: str, length: int | None = None) -> str:
        """The beginning of a text that ``encode`` keeps."""
        end = self._encode(text, self._length(length), whole=True)[1]
        return text[:end]

    def _length(self, length: int | None) -> int:
        return self.length if length is None else length

    def _encode(self, text: str, length: int, whole: bool = False) -> tuple[list[int], int]:
        """The pieces, and how many characters they are of; ``whole``: with all merges, also in training."""
        dropout = 0.0 if whole or not self.training else self.config.dropout
        rng = random.Random(int(torch.randint(2**62, ()))) if dropout else None
        pieces: list[int] = []
        for start, end, spelt in words(text):
            word = (" " * spelt + text[start:end]).encode("utf-8", "replace")
            cut = self._cut_word(word) if rng is None else self._merge(word, dropout, rng)
            if len(pieces) + len(cut) > length:
                return self._cut_within(pieces, text[start:end], spelt, length, start)
            pieces += cut
        return pieces, len(text)

    def _cut_within(
        self, pieces: list[int], word: str, spelt: bool, length: int, start: int
    ) -> tuple[list[int], int]:
        """With the longest beginning of a word that still has room."""
        for end in range(len(word) - 1, 0, -1):
            cut = self._merge((" " * spelt + word[:end]).encode("utf-8", "replace"))
            if len(pieces) + len(cut) <= length:
                return pieces + cut, start + end
        return pieces, start

    def _cut_word(self, word: bytes) -> list[int]:
        """The pieces of a word, remembered."""
        if word not in self._cut_words:
            if len(self._cut_words) >= 2**16:
                self._cut_words.clear()
            self._cut_words[word] = self._merge(word)
        return self._cut_words[word]

    def _merge(self, word: bytes, dropout: float = 0.0, rng: random.Random | None = None) -> list[int]:
        """The pieces of a word: of all pairs that stand in it the merge that was learnt first, until there is none."""
        pieces, ranks = list(word), self._merge_ranks()
        while True:
            pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
            if rng is not None:
                pairs = [pair for pair in pairs if rng.random() >= dropout]
            if not pairs:
                return pieces
            rank, i = min(pairs)
            pieces[i : i + 2] = [BYTES + rank]

    def _merge_ranks(self) -> dict[tuple[int, int], int]:
        if self._ranks is None:
            pairs = [(a, b) for a, b in self.merges.tolist() if a >= 0]
            self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        return self._ranks

    def _forget(self) -> None:
        self._ranks, self._cut_words = None, {}

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._forget()


def _learn_merges(tokenizers: Any, captions: Iterable[str], most: int) -> list[tuple[int, int]]:
    """The pairs of pieces that each merge joins, the first learnt first; each occurs at least twice."""
    # A character stands for a byte, since the package learns from characters.
    spelled = (
        [
            (" " * spelt + text[a:b]).encode("utf-8", "replace").decode("latin-1")
            for a, b, spelt in words(text)
        ]
        for text in captions
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=BYTES + most, min_frequency=2, show_progress=False,
        initial_alphabet=[chr(byte) for byte in range(BYTES)],
    )  # fmt: skip
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.train_from_iterator(spelled, trainer)
    number = {chr(byte): byte for byte in range(BYTES)}
    found: list[tuple[int, int]] = []
    for one, other in json.loads(learner.to_str())["model"]["merges"]:
        found.append((number[one], number[other]))
        number.setdefault(one + other, BYTES + len(found) - 1)
    return found[:most]
