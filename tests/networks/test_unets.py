"""The papers' U-Nets: published sizes, golden numbers, and the details that neither of them shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from limner.networks.attention import attend, split_heads
from limner.networks.checks import SettingsError
from limner.networks.layers import sinusoids
from limner.networks.shape import FeatureShape, attention_levels, level_sizes
from limner.networks.unets.diffusion import Attention, Block, DiffusionUNet, Down, SpatialTransformer
from limner.networks.unets.song import SongBlock, SongUNet
from tests.helpers import golden

ADM: dict[str, Any] = {"scale_shift": True, "resample_blocks": True}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def stir(module: nn.Module) -> nn.Module:
    """Weights near 0 are replaced by random ones."""
    torch.manual_seed(1)
    for p in module.parameters():
        if p.abs().max() < 1e-2:
            nn.init.normal_(p, 0.0, 0.1)
    return module.eval()


EDM = FeatureShape(3, 3, (32, 32), 128, (2, 2, 2), 4, (16,))
CIFAR = FeatureShape(3, 3, (32, 32), 128, (1, 2, 2, 2), 2, (16,))
SMALL = FeatureShape(3, 3, (8, 8), 16, (1, 2), 1, (4,))


def small(classes: int = 0, **changes: Any) -> DiffusionUNet:
    torch.manual_seed(0)
    return DiffusionUNet(replace(SMALL, classes=classes), **{"head_width": 8, **changes}).eval()


# ---- sizes, counted on the public implementations


@pytest.mark.parametrize(
    ("network", "shape", "arguments", "expected"),
    [
        (DiffusionUNet, CIFAR, {"original": True, "heads": 1}, 35_746_307),  # DDPM, CIFAR-10
        (
            DiffusionUNet,
            FeatureShape(6, 3, (256, 256), 320, (1, 2, 3, 4), 3, middle_attention=False),
            {"resample_blocks": True},
            691_579_523,
        ),  # karlo's upsampler: no attention, no text
        (
            DiffusionUNet,
            FeatureShape(3, 6, (64, 64), 192, (1, 2, 3, 4), 3, (32, 16, 8), classes=1000),
            {"order": "split", **ADM},
            295_904_454,
        ),  # ADM, ImageNet at 64 pixels
        (
            DiffusionUNet,
            FeatureShape(3, 6, (256, 256), 256, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8)),
            ADM,
            552_814_086,
        ),  # ADM, ImageNet at 256 pixels, without labels
        (
            DiffusionUNet,
            FeatureShape(3, 3, (64, 64), 224, (1, 2, 3, 4), 2, (32, 16, 8)),
            {"head_width": 32},
            274_056_163,
        ),  # latent diffusion, FFHQ
        (
            DiffusionUNet,
            FeatureShape(4, 4, (64, 64), 320, (1, 2, 4, 4), 2, (64, 32, 16)),
            {"heads": 8, "context": 768},
            859_520_964,
        ),  # Stable Diffusion 1
        (SongUNet, EDM, {"augment": 9}, 55_733_891),  # EDM's DDPM++, CIFAR-10
        (SongUNet, EDM, {"augment": 9, "ncsnpp": True}, 56_397_827),  # its NCSN++
    ],
    ids=["ddpm", "karlo upsampler", "adm64", "adm256", "ldm", "sd1", "edm", "edm-ncsnpp"],
)
def test_published_sizes(
    network: type[nn.Module], shape: FeatureShape, arguments: dict[str, Any], expected: int
) -> None:
    with torch.device("meta"):
        assert count(network(shape, **arguments)) == expected


def test_the_golden_tiny_size() -> None:
    inputs, expected = golden("adm_tiny_params")
    shape = FeatureShape(
        3, inputs["out_channels"], (8, 8), inputs["model_channels"], (1, 2), inputs["num_res_blocks"], (4,)
    )
    unet = DiffusionUNet(shape, heads=inputs["num_heads"], **ADM)
    assert count(unet) == expected["params"]


# ---- golden numbers


def test_features_of_time() -> None:
    for name, original in (("timestep_embedding_openai", False), ("timestep_embedding_ddpm", True)):
        inputs, expected = golden(name)
        found = sinusoids(inputs["t"], inputs["dim"], original)
        assert_close(found.double(), expected["emb"], rtol=1e-5, atol=1e-5)
    inputs, expected = golden("edm_positional_embedding")
    found = sinusoids(inputs["t"], inputs["dim"], original=True)
    assert_close(found.double(), expected["endpoint_true_after_swap"], rtol=1e-5, atol=1e-5)


def attended(qkv: Tensor, heads: int, order: Any) -> Tensor:
    """[B, 3C, L] -> [B, C, L]."""
    return attend(*split_heads(qkv.transpose(1, 2), heads, order)).transpose(1, 2).flatten(2).transpose(1, 2)


def test_orders_of_queries_keys_and_values() -> None:
    inputs, expected = golden("adm_qkv_orders")
    qkv, heads = inputs["qkv"], inputs["n_heads"]
    assert_close(attended(qkv, heads, "heads"), expected["legacy"], rtol=1e-6, atol=1e-6)
    assert_close(attended(qkv, heads, "split"), expected["new"], rtol=1e-6, atol=1e-6)
    mixed = qkv.unflatten(1, (heads, 3, -1)).transpose(2, 3).flatten(1, 3)
    assert_close(attended(mixed, heads, "mixed"), expected["legacy"], rtol=1e-6, atol=1e-6)


# ---- what neither shows


@pytest.mark.parametrize(
    "arguments", [{"original": True}, ADM, {}, {"context": 6}], ids=["ddpm", "adm", "ldm", "text"]
)
def test_a_new_network_gives_zero(arguments: dict[str, Any]) -> None:
    unet = small(**arguments)
    tokens = torch.randn(2, 3, 6) if "context" in arguments else None
    assert not unet(torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0]), tokens=tokens).any()
    for part in unet.modules():
        if isinstance(part, Block):
            assert not part.conv2.weight.any()
        if isinstance(part, Attention):
            assert not part.out.weight.any()


def test_epsilon_and_groups_of_the_norms() -> None:
    def norms(module: nn.Module) -> list[nn.GroupNorm]:
        return [m for m in module.modules() if isinstance(m, nn.GroupNorm)]

    with torch.device("meta"):
        ddpm, adm = DiffusionUNet(CIFAR, original=True, heads=1), DiffusionUNet(CIFAR, **ADM)
        text, edm = DiffusionUNet(CIFAR, context=8), SongUNet(replace(EDM, width=64, multiples=(1, 2)))
    assert {n.eps for n in norms(ddpm)} == {n.eps for n in norms(edm)} == {1e-6}
    assert {n.eps for n in norms(adm)} == {1e-5}
    assert {n.num_groups for net in (ddpm, adm) for n in norms(net)} == {32}
    for part in text.modules():
        if isinstance(part, Block):
            assert part.norm1.eps == part.norm2.eps == 1e-5
        if isinstance(part, SpatialTransformer):
            assert part.norm.eps == 1e-6
    assert {(n.num_channels, n.num_groups) for n in norms(edm)} >= {(64, 16), (128, 32), (192, 32)}
    tiny = small(original=True)
    assert all(n.num_channels >= 2 * n.num_groups for n in norms(tiny))


@pytest.mark.parametrize(("original", "corners"), [(True, (9, 4)), (False, (4, 9))])
def test_halving_pads_below_and_right_or_all_round(original: bool, corners: tuple[int, int]) -> None:
    """A sum of nine pixels tells how many of them lie outside."""
    down = Down(1, original)
    nn.init.ones_(down.conv.weight)
    nn.init.zeros_(down.conv.bias)
    found = down(torch.ones(1, 1, 6, 8))
    assert found.shape == (1, 1, 3, 4)
    assert (found[0, 0, 0, 0], found[0, 0, -1, -1]) == corners


def test_where_attention_sits() -> None:
    """Ho 2020 attends in every block of the level, Karras 2022 on the way up in the last alone."""
    with torch.device("meta"):
        ddpm, edm = DiffusionUNet(CIFAR, original=True, heads=1), SongUNet(EDM)
    assert [len(level.attentions) for level in ddpm.down] == [0, 2, 0, 0]
    assert [len(level.attentions) for level in ddpm.up] == [0, 0, 3, 0]
    attends = [[block.norm3 is not None for block in level] for level in (*edm.down, edm.middle, *edm.up)]
    none = [False] * 5
    assert attends == [
        none[1:],
        [False, *[True] * 4],
        none,
        [True, False],
        none,
        [*none, True],
        [*none, False],
    ]


def test_the_embedding_scales_and_shifts_or_is_added() -> None:
    torch.manual_seed(0)
    embedding = torch.randn(1, 8)
    x = torch.randn(1, 4, 6, 6)
    for scale_shift in (True, False):
        block = Block(4, 4, 8, 1e-5, scale_shift, 0.0)
        nn.init.dirac_(block.conv2.weight)
        nn.init.zeros_(block.embedding_proj.bias)
        h = block.conv1(nn.functional.silu(block.norm1(x)))
        y = block.embedding_proj(embedding)[:, :, None, None]
        if scale_shift:
            h = block.norm2(h) * (1 + y[:, :4]) + y[:, 4:]
        else:
            h = block.norm2(h + y)
        assert_close(block(x, embedding), x + nn.functional.silu(h))


def test_weights_of_karras() -> None:
    """Uniform with variance 2 / (fan in + fan out), nearly nothing where a branch ends, a fifth in qkv."""
    torch.manual_seed(0)
    block = SongBlock(64, 64, 128, 0.0, attends=True)
    expected = (2 / (2 * 64 * 9)) ** 0.5
    assert block.conv1.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert block.conv2.weight.std().item() == pytest.approx(1e-5 * expected, rel=0.02)
    assert block.qkv.weight.var().item() == pytest.approx(0.2 * 2 / (4 * 64), rel=0.05)
    assert block.out.weight.abs().max() < 1e-5
    assert not any(
        p.any() for name, p in block.named_parameters() if name.endswith("bias") and "norm" not in name
    )
    x = torch.randn(2, 64, 8, 8)
    assert_close(block(x, torch.randn(2, 128)), x / 2, rtol=1e-3, atol=1e-3)  # two sums, each by sqrt(1/2)


def test_weights_of_ho_treat_queries_keys_and_values_as_three() -> None:
    torch.manual_seed(0)
    unet = DiffusionUNet(FeatureShape(3, 3, (8, 8), 64, (1,), 1, (8,)), heads=1, original=True)
    for weight in unet.down[0].attentions[0].qkv.weight.chunk(3):
        assert weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)


def test_the_network_of_karras_depends_on_noise_label_and_augmentation() -> None:
    torch.manual_seed(0)
    unet = stir(SongUNet(replace(SMALL, classes=3), augment=2))
    x, noise = torch.randn(2, 3, 8, 8), torch.tensor([-1.0, 0.5])
    plain = unet(x, noise)
    nothing = unet(x, noise, torch.tensor([-1, -1]), torch.zeros(2, 2))
    assert_close(nothing, plain)
    assert not torch.allclose(unet(x, noise, torch.tensor([-1, 2])), plain, atol=1e-4)
    assert_close(unet(x, noise, torch.tensor([-1, 2]))[0], plain[0])
    assert not torch.allclose(unet(x, noise, None, torch.ones(2, 2)), plain, atol=1e-4)
    assert not torch.allclose(unet(x, noise + 0.2), plain, atol=1e-4)


def test_resolutions_name_the_nearest_level() -> None:
    assert level_sizes((32, 32), 3, 2) == [(16, 16), (8, 8), (4, 4)]
    assert level_sizes((30, 45), 3, 2) == [(16, 24), (8, 12), (4, 6)], "padded until it halves"
    sizes = level_sizes((64, 48), 4)  # sides of 48, 24, 12 and 6
    assert attention_levels((24, 6), sizes) == (1, 3)
    assert attention_levels((16, 17, 200, 1), sizes) == (0, 1, 2, 3), "12 and 24 lie either side of 17"
    assert attention_levels((12, 13), sizes) == (2,) and attention_levels((), sizes) == ()
    with pytest.raises(SettingsError, match="1 or more, not 0"):
        attention_levels((8, 0), sizes)


# ---- interface


def test_labels_and_tokens_change_the_output_and_label_minus_one_is_none() -> None:
    unet = stir(small(classes=3, context=6))
    x, t, tokens = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 4, 6)
    plain = unet(x, t, tokens=tokens)
    assert_close(unet(x, t, torch.tensor([-1, -1]), tokens), plain)
    assert not torch.allclose(unet(x, t, torch.tensor([2, 0]), tokens), plain, atol=1e-4)
    assert not torch.allclose(unet(x, t, tokens=tokens + 1), plain, atol=1e-4)


def test_adm_attends_to_tokens_and_positions_in_one_softmax() -> None:
    """GLIDE (Nichol 2022): keys and values of the tokens before those of the positions, masked where padded."""
    torch.manual_seed(0)
    layer = stir(Attention(8, 2, 1e-5, "heads", 6))
    x, tokens = torch.randn(2, 8, 3, 3), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    q, k, v = split_heads(layer.qkv(layer.norm(x).flatten(2).transpose(1, 2)), 2, "heads")
    for row, kept in ((0, 4), (1, 2)):
        kv = layer.context(tokens[row, :kept]).unflatten(1, (2, 2, 4))  # [L, heads, keys and values, D]
        keys = torch.cat([kv[:, :, 0].transpose(0, 1), k[row]], dim=1)  # [heads, L + HW, D]
        values = torch.cat([kv[:, :, 1].transpose(0, 1), v[row]], dim=1)
        h = attend(q[row], keys, values).transpose(0, 1).flatten(1)  # [HW, C]
        expected = x[row] + layer.out(h).T.unflatten(1, (3, 3))
        assert_close(layer(x, tokens, mask)[row], expected)


def test_what_is_added_to_the_times_embedding_changes_the_output() -> None:
    unet = stir(small(context=6, **ADM))
    x, t, tokens = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 4, 6)
    plain = unet(x, t, tokens=tokens)
    assert_close(unet(x, t, tokens=tokens, added=torch.zeros(2, 64)), plain)
    assert not torch.allclose(unet(x, t, tokens=tokens, added=torch.ones(2, 64)), plain, atol=1e-4)
    assert not torch.allclose(unet(x, t, tokens=tokens + 1), plain, atol=1e-4)


def test_attention_ignores_padding() -> None:
    unet = stir(small(context=6))
    x, t, tokens = torch.randn(1, 3, 8, 8), torch.tensor([3.0]), torch.randn(1, 4, 6)
    mask = torch.tensor([[True, True, False, False]])
    assert_close(unet(x, t, tokens=tokens, mask=mask), unet(x, t, tokens=tokens[:, :2]))
    assert not torch.allclose(unet(x, t, tokens=tokens), unet(x, t, tokens=tokens[:, :2]), atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (10, 7), (1, 1)])
def test_any_size(height: int, width: int) -> None:
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, height, width), torch.tensor([0.0, 1.0])
    for unet in (small(original=True), small(**ADM), SongUNet(SMALL)):
        found = stir(unet)(x, t)
        assert found.shape == x.shape and found.isfinite().all()
        assert_close(unet(x[1:], t[1:])[0], found[1], rtol=1e-4, atol=1e-5)


def test_ncsnpp_adds_the_input_at_each_halving_and_filters() -> None:
    """Karras 2022's NCSN++ (``ncsnpp`` of its code): [1, 3, 3, 1] in place of means; Fourier features, sines first."""
    unet = SongUNet(SMALL, ncsnpp=True).double()
    taps = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64)
    filter = (torch.outer(taps, taps) / 64).expand(SMALL.channels, 1, 4, 4)
    x = torch.randn(2, SMALL.channels, 8, 8, dtype=torch.float64)
    block = next(block for level in unet.down.children() for block in level.children() if block.resample)
    back = next(block for level in unet.up.children() for block in level.children() if block.resample)
    torch.testing.assert_close(block.resized(x), F.conv2d(x, filter, stride=2, padding=1, groups=x.shape[1]))
    enlarged = F.conv_transpose2d(x, 4 * filter, stride=2, padding=1, groups=x.shape[1])
    torch.testing.assert_close(back.resized(x), enlarged)

    conv = unet.residual[0].conv
    wide = F.conv2d(x, conv.weight, conv.bias, padding=2)  # [2, W, 10, 10]
    halved = F.conv2d(wide, filter[:1].expand(wide.shape[1], -1, -1, -1), stride=2, groups=wide.shape[1])
    torch.testing.assert_close(unet.residual[0](x), halved)
    seen: list[Tensor] = []
    block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    follows = unet.down[1][1]
    follows.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    unet(x, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(seen[1], (seen[0] + unet.residual[0](x)) / 2**0.5)

    noise = torch.tensor([-1.5, 0.3], dtype=torch.float64)
    angle = 2 * torch.pi * noise[:, None] * unet.frequencies
    torch.testing.assert_close(unet.noise_features(noise), torch.cat([angle.sin(), angle.cos()], 1))
    assert len(unet.frequencies) == SMALL.width and unet.residual[0](x).shape[2:] == (4, 4)
