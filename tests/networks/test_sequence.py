"""Blocks over sequences: goldens, masks in the published order, and a cache that changes nothing."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from limner.networks.transformers.sequence import Cache, SequenceBlocks, Transformer, caches
from limner.networks.transformers.sparse import Pattern, published_patterns, stream_mask
from tests.helpers import GOLDENS, golden

PATTERNS: tuple[Pattern, ...] = ("full", "row", "column", "conv")


@pytest.mark.parametrize("pattern", PATTERNS[1:])
def test_published_masks(pattern: Pattern) -> None:
    given, expected = golden(f"dalle_mask_{pattern}")
    mask = stream_mask(pattern, given["text"], (given["height"], given["width"]), given.get("kernel", 11))
    assert torch.equal(mask, expected["mask"].bool())
    assert torch.equal(mask.sum(1), expected["seen_by_each"].long())


def test_conv_windows_that_overlap_across_narrow_rows() -> None:
    seen = {0, 1, 2, 3, 4, 5, 6}  # rows of 2, kernel 5: 0..2, 2 - 2..2 + 2, 4 - 2..4 + 2
    mask = stream_mask("conv", 0, (6, 2), 5)
    assert {11 - key for key in range(12) if mask[11, key]} == seen


def test_published_order_of_patterns() -> None:
    _, expected = golden("dalle_layer_patterns")
    for depth in (1, 2, 4, 6, 8):
        assert published_patterns(depth) == expected[str(depth)]
    patterns = published_patterns(64)
    assert [i + 1 for i, p in enumerate(patterns) if p == "column"] == expected["columns_64"].tolist()
    for depth in (24, 64):
        assert {p: published_patterns(depth).count(p) for p in PATTERNS[1:]} == expected[f"counts_{depth}"]


def load(part: nn.Linear, weight: Tensor) -> None:
    part.weight.data = weight.double()


def golden_transformer() -> tuple[Transformer, Tensor, Tensor]:
    given, expected = golden("transformer_with_cache")
    blocks = SequenceBlocks(width=4, depth=2, heads=given["heads"], hidden=6, bias=False)
    network = Transformer(blocks).double()
    for block, weights in zip(network.blocks, given["layers"], strict=True):
        load(block.attention.part.qkv, weights["qkv"])
        load(block.attention.part.out, weights["out"])
        load(block.mlp.part.up, weights["up"])
        load(block.mlp.part.down, weights["down"])
    return network, given["x"][None], expected["out"][None]


def test_blocks_and_their_cache_give_the_golden() -> None:
    network, x, expected = golden_transformer()
    mask = torch.tensor(GOLDENS["transformer_with_cache"]["inputs"]["mask"]).bool()
    assert torch.equal(mask, stream_mask("row", 3, (2, 2)))
    torch.testing.assert_close(network(x, mask), expected, rtol=1e-9, atol=1e-9)
    kept = caches(network.config, x.shape[1])
    out = [network(x[:, :2], mask[:2, :2], kept)]  # two places at once, then one by one
    out += [network(x[:, i : i + 1], mask[i, : i + 1].nonzero()[:, 0], kept) for i in range(2, 7)]
    torch.testing.assert_close(torch.cat(out, dim=1), expected, rtol=1e-12, atol=1e-12)


def test_normformer_layer() -> None:
    given, expected = golden("normformer_layer")
    blocks = SequenceBlocks(width=4, depth=1, heads=2, hidden=6, mlp="glu", norms="both", bias=False)
    (block,) = Transformer(blocks).double().blocks
    attention, glu, weights = block.attention, block.mlp.part, given["glu"]
    load(attention.part.qkv, torch.cat([given["query"], given["key"], given["value"]]))
    load(attention.part.out, given["out"])
    for part, name in ((glu.gate, "gate"), (glu.up, "value"), (glu.down, "out")):
        load(part, weights[name])
    norms = {"norm_before": attention.before, "norm_after": attention.after}
    for values, norm in [(given[name], norm) for name, norm in norms.items()] + [
        (weights["norm_in"], glu.norm), (weights["norm_mid"], glu.inner_norm),
    ]:  # fmt: skip
        norm.weight.data, norm.bias.data = values.unbind(0)
    mask = given["seen"].bool()[None, None, None]
    after = attention(given["x"][None], mask)
    torch.testing.assert_close(after[0], expected["after_attention"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(block(given["x"][None], mask)[0], expected["y"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_cache_changes_nothing(pattern: Pattern) -> None:
    torch.manual_seed(0)
    network = randomised(Transformer(SequenceBlocks(width=16, depth=3, heads=2, qk_norm=True)))
    text, grid = 3, (3, 5)
    mask, x = stream_mask(pattern, text, grid, 3), torch.randn(2, text + 15, 16, dtype=torch.float64)
    kept = caches(network.config, x.shape[1])
    out = [network(x[:, :text], mask[:text, :text], kept)]
    for i in range(text, x.shape[1]):
        out.append(network(x[:, i : i + 1], mask[i].nonzero()[:, 0], kept))
    torch.testing.assert_close(torch.cat(out, dim=1), network(x, mask), rtol=1e-12, atol=1e-12)


def test_attention_to_a_context_is_kept() -> None:
    torch.manual_seed(0)
    network = randomised(Transformer(SequenceBlocks(width=8, depth=2, heads=2), context=6))
    x, context = (torch.randn(2, n, w, dtype=torch.float64) for n, w in ((4, 8), (5, 6)))
    seen = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None]
    mask = stream_mask("full", 4, (0, 0))
    kept = caches(network.config, 4)
    out = [network(x[:, i : i + 1], None, kept, context=context, context_mask=seen) for i in range(4)]
    whole = network(x, mask, context=context, context_mask=seen)
    torch.testing.assert_close(torch.cat(out, dim=1), whole, rtol=1e-12, atol=1e-12)
    changed = context.index_fill(1, torch.tensor([3, 4]), 7.0)
    assert torch.allclose(network(x, mask, context=changed, context_mask=seen)[0], whole[0])


def test_norms_and_their_counts() -> None:
    """A block of minDALL-E, of ruDALL-E (sandwich norms), of BERT, and of DALL-E mini with and without scales."""

    def count(config: SequenceBlocks, context: int = 0) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in Transformer(replace(config, depth=1), context).parameters())

    assert count(SequenceBlocks(width=1536, heads=24)) == 28_331_520
    assert count(SequenceBlocks(width=2048, heads=16, norms="both")) == 50_366_464
    assert count(SequenceBlocks(width=768, heads=16, norms="after")) == 7_087_872
    mini = SequenceBlocks(width=1024, heads=16, hidden=2730, mlp="glu", norms="both", bias=False)
    assert count(mini) == 12_592_468
    assert count(mini, context=1024) == 16_790_868
    assert count(mini) - count(replace(mini, norm_scales=False)) == 1024 + 1024 + 2730


def test_a_cache_is_filled_from_the_front_without_copies() -> None:
    cache = Cache(room=4)
    first, _ = cache.append(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3))
    keys, values = cache.append(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3))
    assert keys[0, 0, :, 0].tolist() == values[0, 0, :, 0].tolist() == [1, 1, 0]
    assert keys.data_ptr() == first.data_ptr()


def randomised(network: Transformer) -> Transformer:
    """In float64, with weights that do something."""
    for parameter in network.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return network
