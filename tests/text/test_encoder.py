"""The text encoder, and the condition embedding that a network reads."""

import pytest
import torch
from torch.testing import assert_close

from limner.core import Condition, ConditionEmbedding, ImageSpec
from limner.families.dit import DiT
from limner.families.flow import Flow
from limner.text.encoder import ByteEncoder, TextConfig, TextEncoder


def test_the_text_encoder_does_not_see_its_padding():
    torch.manual_seed(0)
    encoder = ByteEncoder(TextConfig(width=32, layers=2, length=64)).eval()
    alone = encoder(encoder.pieces(["a red circle"]))
    beside = encoder(encoder.pieces(["a red circle", "a much longer text about a blue square"]))
    length = alone.tokens.shape[1]
    assert_close(beside.tokens[:1, :length], alone.tokens, rtol=1e-4, atol=1e-5)
    assert not beside.mask[0, length:].any()
    assert_close(beside.pooled[:1], alone.pooled, rtol=1e-4, atol=1e-5)


def test_the_interface_is_what_the_encoder_has():
    encoder: TextEncoder = ByteEncoder(TextConfig(width=16, layers=1, length=8))
    tokens, mask, pooled = encoder(encoder.pieces(["", "a"]))
    assert tokens.shape == (2, 2, encoder.width) and pooled.shape == (2, encoder.pooled_width)
    assert mask.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("family", [Flow, DiT])
@pytest.mark.parametrize(
    "spec", [ImageSpec(3, 16, 16, captions=True), ImageSpec(3, 16, 16, classes=("cat", "dog"))]
)
def test_conditions_embedded_apart_and_concatenated_are_as_embedded_together(family, spec):
    """Through a U-Net and a transformer that attend to the tokens: padding changes no row."""
    torch.manual_seed(0)
    network = family(family.presets["tiny"].model, spec).network.eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    texts = ["red", "a large blue square to the left of a small one", ""] if spec.captions else None
    label = None if spec.captions else torch.tensor([0, 1, 0])

    def embed(rows: slice) -> ConditionEmbedding:
        return network.embedder(Condition(3, label, texts)[rows])

    together, apart = embed(slice(3)), ConditionEmbedding.cat([embed(slice(1)), embed(slice(1, 3))])
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9])
    wanted = network(x, t, together)
    assert_close(network(x, t, apart), wanted, rtol=1e-5, atol=1e-5)
    one_each = torch.cat([network(x[i : i + 1], t[i : i + 1], embed(slice(i, i + 1))) for i in range(3)])
    assert_close(one_each, wanted, rtol=1e-4, atol=1e-5)
    order = torch.tensor([2, 0])
    assert_close(network(x[order], t[order], apart[order]), wanted[order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x, t, together[torch.tensor([1, 0, 2])]), wanted, atol=1e-3), (
        "it matters"
    )


def test_embeddings_of_different_kinds_are_not_concatenated():
    embedding, tokens, mask = torch.zeros(1, 4), torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="different kinds"):
        ConditionEmbedding.cat([ConditionEmbedding(embedding), ConditionEmbedding(embedding, tokens, mask)])
    with pytest.raises(ValueError, match="mask"):
        ConditionEmbedding(embedding, tokens)
    assert ConditionEmbedding.cat([ConditionEmbedding(), ConditionEmbedding()]) == ConditionEmbedding()
