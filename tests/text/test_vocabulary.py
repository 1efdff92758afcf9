"""Vocabularies that are learnt from captions."""

import sys

import pytest
import torch

from limner.core import ImageSpec, LimnerError, Model
from limner.text import vocabulary as module
from limner.text.vocabulary import BYTES, Vocabulary, VocabularyConfig
from limner.text.words import words

CAPTIONS = [
    "a red circle above a blue square",
    "Ein großer, roter Kreis",
    "一个小的红色圆形",
    "빨간 원이",
    "красный круг",
] * 4


def learnt(**settings) -> Vocabulary:
    vocabulary = Vocabulary(VocabularyConfig(**settings)).eval()
    vocabulary.learn(CAPTIONS)
    return vocabulary


def spelled(vocabulary: Vocabulary, pieces: list[int]) -> bytes:
    """What the pieces stand for."""
    table = [bytes([i]) for i in range(BYTES)]
    for one, other in vocabulary.merges.tolist():
        if one >= 0:
            table.append(table[one] + table[other])
    return b"".join(table[piece] for piece in pieces)


@pytest.mark.parametrize(
    "text", ["", "a red one", "红色圆形", "\ud800", "👩‍🔬❤️", "\x00\n", "नमस्ते", "never seen"]
)
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_nothing_is_unknown(kind, text):
    vocabulary = learnt(kind=kind)
    (pieces,) = vocabulary.encode([text])
    expected = "".join(" " * spelt + text[a:b] for a, b, spelt in words(text)).encode("utf-8", "replace")
    assert spelled(vocabulary, pieces) == expected
    assert all(0 <= piece < vocabulary.size for piece in pieces)


def test_a_word_is_the_same_pieces_wherever_it_stands():
    vocabulary = learnt()
    for word, text in [("circle", "circle, well-circle (a circle)circle."), ("红", "红色的红，大红 red红")]:
        (piece,), (pieces,) = vocabulary.encode([word]), vocabulary.encode([text])
        assert sum(pieces[i : i + len(piece)] == piece for i in range(len(pieces))) == text.count(word)
    assert len(vocabulary.encode(["circle"])[0]) == 1 == len(vocabulary.encode(["红"])[0])


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@pytest.mark.parametrize("text", ["a red circle", "一个小的红色圆形", "größer als наш 👩‍🔬"])
def test_a_long_text_is_cut_between_characters(kind, text):
    vocabulary = learnt(kind=kind)
    for length in range(len(text.encode()) + 2):
        (pieces,), read = vocabulary.encode([text], length), vocabulary.read(text, length)
        assert len(pieces) <= length and text.startswith(read)
        assert pieces == vocabulary.encode([read], length)[0]
        assert "".join(spelled(vocabulary, pieces).decode().split()) == "".join(read.split())
    assert read == text and vocabulary.read(text) == text


def test_the_pieces_are_those_of_the_package_that_learns_them():
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = learnt(kind="bpe", merges=60)
    names = {i: spelled(vocabulary, [i]).decode("latin-1") for i in range(BYTES + vocabulary.learnt)}
    merges = [(names[a], names[b]) for a, b in vocabulary.merges.tolist() if a >= 0]
    theirs = tokenizers.models.BPE({name: i for i, name in names.items()}, merges)
    for text in CAPTIONS[:5]:
        for start, end, spelt in words(text):
            word = (" " * spelt + text[start:end]).encode().decode("latin-1")
            assert [token.id for token in theirs.tokenize(word)] == vocabulary.encode([text[start:end]])[0]


def test_a_vocabulary_lies_in_the_weights(monkeypatch):
    vocabulary = learnt(merges=40)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Vocabulary(vocabulary.config).state_dict().items()}
    assert shapes == {"merges": (40, 2)} and vocabulary.size == 296
    other = Vocabulary(vocabulary.config)
    assert other.encode(["red"]) != vocabulary.encode(["red"])
    monkeypatch.setattr(module, "need", None)  # the package is not asked for
    other.load_state_dict(vocabulary.state_dict())
    assert other.eval().encode(CAPTIONS) == vocabulary.encode(CAPTIONS)


def test_merges_are_left_out_in_training_only():
    vocabulary = learnt(dropout=0.5)
    whole = vocabulary.encode(CAPTIONS[:2])
    assert vocabulary.encode(CAPTIONS[:2]) == whole
    vocabulary.train()
    torch.manual_seed(0)
    first, second = vocabulary.encode(CAPTIONS[:2]), vocabulary.encode(CAPTIONS[:2])
    assert first != second and whole not in (first, second)
    assert [spelled(vocabulary, p) for p in first] == [spelled(vocabulary, p) for p in whole]
    torch.manual_seed(0)
    assert vocabulary.encode(CAPTIONS[:2]) == first
    assert vocabulary.read(CAPTIONS[0]) == CAPTIONS[0]


def test_without_the_package_a_vocabulary_is_bytes_or_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert learnt(kind="auto").learnt == 0 and learnt(kind="bytes").size == BYTES
    with pytest.raises(LimnerError, match=r"limner\[text\]"):
        learnt(kind="bpe")


class Reader(Model):
    """With a vocabulary of its own."""

    Config = VocabularyConfig

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.network = torch.nn.ModuleList([Vocabulary(config)])


def test_what_reads_texts_learns_from_the_captions():
    model = Reader(VocabularyConfig(kind="bpe"), ImageSpec(3, 8, 8, captions=True))
    model.learn_texts(CAPTIONS)
    assert model.network[0].learnt > 10
