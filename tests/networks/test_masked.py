"""The transformer of hidden tokens: public counts and numbers, Halton's order."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from limner.networks.logits import remove_smoothing
from limner.networks.transformers.masked import MaskedTransformer, halton_order, hidden_after
from limner.networks.transformers.sequence import SequenceBlocks
from tests.helpers import golden

BERT = SequenceBlocks(768, 24, 16, 3072, norms="after")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("codes", "places", "embeddings", "head", "total"),
    [(4096, 32, 3_943_680, 3_149_824, 177_202_432), (1024, 256, 1_756_416, 787_456, 172_652_800)],
)
def test_it_has_the_published_numbers_of_parameters(
    codes: int, places: int, embeddings: int, head: int, total: int
) -> None:
    with torch.device("meta"):
        network = MaskedTransformer(BERT, codes, places, prefix=True)
    parts, classes = [network.token, network.position, network.kind, network.norm_in], 1001 * 768
    assert sum(map(count, parts)) + classes == embeddings and count(network.head) == head
    assert count(network.transformer.blocks[0]) == 7_087_872
    assert count(network) + classes == total


def test_the_schedule_matches_the_golden_numbers() -> None:
    _, expected = golden("masked_schedule")
    for name, left in expected.items():
        tokens, calls = map(int, name.split("_"))
        assert hidden_after(tokens, calls) == list(left), name


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 64, 257])
@pytest.mark.parametrize("calls", [1, 2, 5, 64, 1000])
def test_each_call_draws_a_token_and_none_is_left(tokens: int, calls: int) -> None:
    left = [tokens, *hidden_after(tokens, calls)]
    assert len(left) - 1 == min(tokens, calls) and left[-1] == 0
    assert all(after < before for before, after in pairwise(left))


def test_no_tokens_need_no_call() -> None:
    assert hidden_after(0, 8) == []


@pytest.mark.parametrize("grid", [(8, 8), (3, 5), (1, 7), (16, 4)])
def test_haltons_order_meets_every_place_once(grid: tuple[int, int]) -> None:
    order = halton_order(grid)
    assert sorted(order.tolist()) == list(range(grid[0] * grid[1]))


def test_haltons_order_begins_as_the_sequence_does_and_spreads() -> None:
    order = halton_order((8, 9))  # (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9)
    places = [(int(i) // 9, int(i) % 9) for i in order[:5]]
    assert places == [(4, 3), (2, 6), (6, 1), (1, 4), (5, 7)]
    near = [(int(i) // 8, int(i) % 8) for i in halton_order((8, 8))[:4]]
    assert min(math.dist(a, b) for a in near for b in near if a != b) >= 2


def test_what_smoothing_put_on_every_token_is_taken_away_again() -> None:
    true = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    learnt = (0.9 * true + 0.1 / 4).log() + 3.0
    torch.testing.assert_close(remove_smoothing(learnt, 0.1).softmax(-1), true)
    assert remove_smoothing(learnt, 0.0) is learnt
    assert remove_smoothing(torch.zeros(1, 4), 0.1).softmax(-1).tolist() == [[0.25] * 4]


@torch.no_grad()
def test_every_place_sees_every_other_and_the_condition() -> None:
    torch.manual_seed(0)
    network = MaskedTransformer(SequenceBlocks(16, 2, 2), 7, 6, prefix=True, context=5, std=0.3).double()
    tokens, embedding, text = (
        torch.randint(7, (1, 6)),
        *(torch.randn(1, *n).double() for n in ((16,), (4, 5))),
    )
    mask = torch.tensor([[True, True, True, False]])
    logits = network(tokens, embedding, text, mask)
    assert logits.shape == (1, 6, 7) and logits.dtype == torch.float64
    other, padding = tokens.clone(), text.clone()
    other[0, 3], padding[0, 3] = 7, 0.0
    for changed in ((other, embedding, text), (tokens, -embedding, text), (tokens, embedding, -text)):
        assert (network(*changed, mask) != logits).any(2).all()
    assert torch.equal(network(tokens, embedding, padding, mask), logits)
