"""The encoder-decoder of DALL-E mini: public counts and numbers, and its cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from limner.networks.transformers.encoder_decoder import EncoderDecoder
from limner.networks.transformers.sequence import Block, SequenceBlocks
from tests.helpers import golden

MINI = SequenceBlocks(1024, 12, 16, 2730, mlp="glu", norms="both", bias=False)
MEGA = replace(MINI, width=2048, depth=24, heads=32, hidden=4096)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("blocks", "rows", "layers", "parts", "total", "without_scales"),
    [
        (MINI, (50_264, 16_385), (12_592_468, 16_790_868), (202_649_584, 235_313_136), 437_962_720, 437_833_712),
        (MEGA, (50_272, 16_416), (41_963_520, 58_748_928), (1_110_220_800, 1_477_746_688), 2_587_967_488,
         2_587_521_024),
    ],
    ids=["mini", "mega"],
)  # fmt: skip
def test_it_has_the_published_numbers_of_parameters(
    blocks: SequenceBlocks, rows: tuple[int, int], layers: tuple[int, int], parts: tuple[int, int],
    total: int, without_scales: int,
) -> None:  # fmt: skip
    sizes = (blocks.depth, rows[0], 64, rows[1], 256)
    with torch.device("meta"):
        network = EncoderDecoder(blocks, *sizes)
        plain = EncoderDecoder(replace(blocks, norm_scales=False), *sizes)
    stacks = [stack.transformer.blocks[0] for stack in (network.encoder, network.decoder)]
    assert tuple(map(count, stacks)) == layers
    assert (count(network.encoder), count(network.decoder) + count(network.head)) == parts
    assert (count(network), count(plain)) == (total, without_scales)


def test_a_layer_matches_the_golden_numbers() -> None:
    given, expected = golden("normformer_layer")
    glu, heads = given["glu"], given["heads"]
    block = Block(SequenceBlocks(4, 1, heads, 6, mlp="glu", norms="both", bias=False)).double()
    weights = {
        "attention.before": given["norm_before"], "attention.after": given["norm_after"],
        "mlp.part.norm": glu["norm_in"], "mlp.part.inner_norm": glu["norm_mid"],
    }  # fmt: skip
    norms = {
        f"{name}.{part}": w[i] for name, w in weights.items() for i, part in enumerate(("weight", "bias"))
    }
    matrices = {
        "attention.part.qkv": torch.cat([given[name] for name in ("query", "key", "value")]),
        "attention.part.out": given["out"],
        "mlp.part.gate": glu["gate"], "mlp.part.up": glu["value"], "mlp.part.down": glu["out"],
    }  # fmt: skip
    block.load_state_dict(norms | {f"{name}.weight": matrix for name, matrix in matrices.items()})
    x, mask = given["x"][None], given["seen"].bool()[None, None, None]
    with torch.no_grad():
        torch.testing.assert_close(
            block.attention(x, mask)[0], expected["after_attention"], rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(block(x, mask)[0], expected["y"], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_with_its_cache_it_gives_the_same_logits_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    blocks = SequenceBlocks(16, 3, 2, 24, mlp="glu", norms="both", bias=False)
    network = EncoderDecoder(blocks, 2, 12, 7, 11, 9, std=0.3).double()
    text = torch.randint(12, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    tokens = torch.randint(10, (3, 9))
    whole = network(text, mask, tokens)  # [B, 9, 11]
    encoded, caches = network.read(text, mask), network.caches()
    before = torch.cat(
        [torch.full((3, 1), 10), tokens[:, :-1]], dim=1
    )  # the start of an image is the last row
    steps = [network.write(before[:, :2], encoded, caches)]  # a given beginning may be read at once
    steps += [network.write(before[:, i : i + 1], encoded, caches) for i in range(2, 9)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    torch.testing.assert_close(network(text[2:, :2], mask[2:, :2], tokens[2:]), whole[2:])
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 10
    differs = (network(text, mask, changed) != whole).any(2).any(0)
    assert differs.tolist() == [False] * 6 + [True] * 3, "a token sees those before it alone"
