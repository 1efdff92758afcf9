"""From logits to tokens: goldens, ties, and one number of an image's own stream for each token."""

import math

import pytest
import torch

from limner.core import Draws
from limner.networks.logits import choose, filter_logits, guide, token_loss
from tests.helpers import golden


def test_guidance() -> None:
    given, expected = golden("super_conditioning")
    logits = guide(given["conditional"], given["unconditional"], given["scale"])
    torch.testing.assert_close(logits, expected["logits"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits.softmax(-1), expected["probabilities"], rtol=1e-9, atol=1e-9)
    assert torch.allclose(guide(given["conditional"], given["unconditional"], 1.0), given["conditional"])


def test_top_k() -> None:
    given, expected = golden("top_k")
    logits = filter_logits(given["logits"], given["temperature"], given["k"])
    assert torch.equal(logits > -math.inf, expected["kept"].bool())
    torch.testing.assert_close(logits.softmax(-1), expected["probabilities"], rtol=1e-9, atol=1e-9)
    assert torch.equal(filter_logits(given["logits"], 1.0, 9), given["logits"])


@pytest.mark.parametrize(
    ("p", "kept"), [(0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4), (1e-9, 1)]
)
def test_top_p_keeps_the_token_that_crosses_p(p: float, kept: int) -> None:
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]], dtype=torch.float64).log()
    order = torch.tensor([1, 3, 0, 2])
    left = filter_logits(logits, top_p=p)[0, order] > -math.inf
    assert left.tolist() == [True] * kept + [False] * (4 - kept)


def test_top_p_is_of_what_temperature_and_top_k_leave() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    assert (filter_logits(logits, top_k=2, top_p=0.55) > -math.inf).tolist() == [[True, False, False, False]]
    assert (filter_logits(logits, 0.25, top_p=0.7) > -math.inf).tolist() == [[True, False, False, False]]
    ties = torch.zeros(1, 4)
    assert int((filter_logits(ties, top_p=0.49) > -math.inf).sum()) == 2


def test_an_image_gets_the_same_tokens_alone_and_in_a_batch() -> None:
    logits = torch.randn(6, 3, 9)
    together = choose(logits, Draws(range(6)), 0.8, 5, 0.9)  # [6, 3]
    alone = torch.cat([choose(logits[i : i + 1], Draws([i]), 0.8, 5, 0.9) for i in range(6)])
    assert torch.equal(together, alone)
    assert together.shape == (6, 3)
    assert torch.equal(choose(logits, Draws(range(6)), 0.0), logits.argmax(-1))


def test_tokens_are_drawn_by_their_probabilities() -> None:
    logits = torch.tensor([0.5, 0.2, 0.3]).log().expand(1, 20_000, 3)
    counts = choose(logits, Draws([0])).flatten().bincount() / 20_000
    assert torch.allclose(counts, torch.tensor([0.5, 0.2, 0.3]), atol=0.02)


def test_loss_of_text_and_image() -> None:
    given, expected = golden("dalle_loss")
    terms = [
        token_loss(given[f"{kind}_logits"], given[f"{kind}_targets"].long()) for kind in ("text", "image")
    ]
    assert abs(float(terms[0]) - expected["text"]) < 1e-9
    assert abs(float(terms[1]) - expected["image"]) < 1e-9
    assert token_loss(given["text_logits"].bfloat16(), given["text_targets"].long()).dtype == torch.float32
