"""Layers along time: goldens, the identity at first, no look at later frames, and the published 3D U-Net's sizes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from limner.networks.unets.space_time import (
    FrameAttention,
    TemporalAttention,
    TemporalConv,
    TemporalLayers,
    fold_frames,
    frame_angles,
    frames_seen,
    relative_buckets,
    turn,
    unfold_frames,
)
from limner.networks.unets.unet import UNet, UNetLevels
from limner.networks.unets.vdm import VDMLevels, VDMUNet
from tests.helpers import golden


class Unturned(FrameAttention):
    """Without positions, as the golden is."""

    def __init__(self, causal: bool):
        super().__init__(1, "relative", causal)
        nn.init.zeros_(self.bias.weight)  # type: ignore[union-attr]


def along_time(x: Tensor, given: dict[str, Any], causal: bool) -> Tensor:
    """[B, C, T, H, W] -> the same, each place attending over its frames."""
    rows = x.flatten(3).permute(0, 2, 3, 1)  # [B, T, HW, C]
    q, k, v = (rows @ given[name].T for name in ("wq", "wk", "wv"))
    h = Unturned(causal).double()(q, k, v)  # [B, T, HW, C]
    return h.permute(0, 3, 1, 2).unflatten(3, x.shape[3:])


def test_temporal_attention_golden() -> None:
    given, expected = golden("temporal_attention")
    x = given["x"]
    assert_close(along_time(x, given, False), expected["video"], rtol=1e-9, atol=1e-9)
    assert_close(along_time(x, given, True), expected["causal"], rtol=1e-9, atol=1e-9)
    singles = x.transpose(1, 2).flatten(0, 1)[:, :, None]  # a picture is a clip of one frame
    assert_close(along_time(singles, given, False)[:, :, 0], expected["images"].transpose(1, 2)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_temporal_convolution_golden(causal: bool) -> None:
    given, expected = golden("temporal_convolution")
    x, weight = given["x"], given["weight"]
    conv = TemporalConv(2, causal).double()
    same = unfold_frames(conv(fold_frames(x), x.shape[2]), x.shape[2])
    assert torch.equal(same, x), "the identity at first"
    if not causal:
        assert torch.equal(conv.weight[..., 0], expected["identity_weight"])
    with torch.no_grad():
        conv.weight.copy_(weight[..., None])
    result = unfold_frames(conv(fold_frames(x), x.shape[2]), x.shape[2])
    assert_close(result, expected["causal" if causal else "centred"], rtol=1e-9, atol=1e-9)


def test_temporal_convolution_counts() -> None:
    _, expected = golden("temporal_convolution")
    only = sum(p.numel() for p in nn.Conv2d(64, 64, 3).parameters())
    time = sum(p.numel() for p in TemporalConv(64).parameters())
    assert (only, only + time) == (expected["counts"]["only_space_64"], expected["counts"]["factorised_64"])


def test_rotary_positions_are_a_turn_of_each_pair() -> None:
    """As complex numbers, at 10000^(-2 i / D) radians a frame; only the distance of two frames matters."""
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    angles = frame_angles(5, 8).double()
    assert_close(angles[1], 10_000.0 ** (-torch.arange(4.0, dtype=torch.float64) / 4))
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angles)
    assert_close(turn(x, angles), torch.cat([turned.real, turned.imag], dim=-1))
    turned = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.exp(1j * angles)
    assert_close(turn(x, angles, neighbours=True), torch.view_as_real(turned).flatten(-2))
    q, k = (turn(torch.randn(8, dtype=torch.float64).expand(5, 8), angles) for _ in range(2))
    logits = q @ k.T
    assert_close(logits[0, 2], logits[2, 4])
    assert not math.isclose(float(logits[0, 2]), float(logits[2, 0]))


def test_relative_positions_share_buckets_by_logarithm() -> None:
    """Raffel 2020's table: 8 exact distances on each side of 32 buckets, then wider ones to 128."""
    table = relative_buckets(200)
    assert table[0, :8].tolist() == [0, *range(17, 24)] and table[:8, 0].tolist() == [*range(8)]
    ends = [8, 12, 16, 23, 32, 46, 64, 91, 128]  # ceil(8 16^(k/8)), where each wide bucket begins
    assert [int(table[end, 0]) for end in ends[:-1]] == [*range(8, 16)]
    assert [int(table[end - 1, 0]) for end in ends[1:-1]] == [*range(8, 15)]
    assert int(table[199, 0]) == 15 and int(table[0, 199]) == 31
    assert relative_buckets(40, 32, 32).max() == 31


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_frames_that_are_apart_have_the_positions_of_the_whole_clip(positions: Any) -> None:
    """Attention over every third frame is that over all, where the others are hidden from it."""
    torch.manual_seed(0)
    attention = FrameAttention(2, positions)
    q, k, v = torch.randn(3, 2, 7, 5, 8)  # [B, T, P, C]
    seen = torch.arange(7) % 3 == 0

    class Hiding(FrameAttention):
        def mask(self, frames: int, like: Tensor, stride: int) -> Tensor:
            known = super().mask(frames, like, stride)
            hidden = torch.zeros(frames, frames).masked_fill(~seen, -math.inf)
            return hidden if known is None else hidden + known

    hiding = Hiding(2, positions)
    hiding.load_state_dict(attention.state_dict())
    some = attention(*(y[:, ::3] for y in (q, k, v)), 3)
    assert_close(some, hiding(q, k, v)[:, ::3])
    assert not torch.allclose(some, attention(*(y[:, ::3] for y in (q, k, v))), atol=1e-3)


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_no_frame_sees_a_later_one(positions: Any) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList([TemporalConv(8, True), TemporalAttention(8, 4, positions, True)])
    for p in layers.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 8, 6, 3, 3)
    other = torch.cat([x[:, :, :4], torch.randn(2, 8, 2, 3, 3)], dim=2)

    def run(x: Tensor) -> Tensor:
        h = fold_frames(x)
        for layer in layers:
            h = layer(h, 6)
        return unfold_frames(h, 6)

    assert torch.equal(run(x)[:, :, :4], run(other)[:, :, :4])
    assert not torch.allclose(run(x)[:, :, 4:], run(other)[:, :, 4:])
    assert frames_seen(3, False) is None


def test_a_unet_of_clips_begins_as_that_of_images() -> None:
    torch.manual_seed(0)
    levels = UNetLevels((8, 16), (1, 2), (4,), (), 2, 8)
    unet = UNet(3, 3, (8, 8), 16, levels)
    nn.init.normal_(unet.head.weight)
    layers = TemporalLayers(levels.widths, levels.blocks, 8)
    assert {name for name in layers.at if "_" not in name} == {"down0", "up0", "down1", "up1"}
    assert len(layers.at) == 4 + 2 * 2 * 3, "two convolutions a block"
    x, embedding = torch.randn(6, 3, 8, 8), torch.randn(6, 16)
    clips = unet(x, embedding, None, None, partial(layers, frames=3))
    assert torch.equal(clips, unet(x, embedding))


# ---- the published 3D U-Net


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_published_unets_sizes() -> None:
    with torch.device("meta"):
        sizes = [count(VDMUNet(3, 3, VDMLevels(width))) for width in (32, 64, 128)]
        unet: Any = VDMUNet(3, 3, VDMLevels())
    assert sizes == [9_969_475, 35_706_243, 134_482_435]
    levels = [*unet.down, *unet.up]
    down, up = (
        count(*(m for level in row for m in (level.block1, level.block2, level.resample)))
        for row in (unet.down, unet.up)
    )
    assert (count(unet.bias), count(unet.stem), count(unet.stem_attention)) == (256, 9_472, 65_600)
    assert (count(unet.time), down, up) == (82_432, 13_529_664, 7_863_232)
    assert count(unet.middle_along_time, *(level.along_time for level in levels)) == 2_033_600
    assert count(*(level.over_frame for level in levels)) == 1_510_272
    assert (count(unet.middle1, unet.middle2), count(unet.middle_over_frame)) == (9_967_616, 524_800)
    assert count(unet.last, unet.head) == 119_299


@pytest.mark.parametrize("causal", [False, True])
def test_the_published_unet_on_clips(causal: bool) -> None:
    torch.manual_seed(0)
    unet = VDMUNet(2, 2, VDMLevels(8, (1, 2), 2), causal)
    x, t = torch.randn(2, 2, 4, 6, 10), torch.tensor([[3.0, 500.0, 0.0, 7.0]]).repeat(2, 1)

    def run(x: Tensor) -> Tensor:
        return unfold_frames(unet(fold_frames(x), t.flatten(), x.shape[2]), x.shape[2])

    whole = run(x)
    assert whole.shape == x.shape
    assert_close(run(x[1:].repeat(2, 1, 1, 1, 1))[1], whole[1], rtol=1e-4, atol=1e-5)
    changed = torch.cat([x[:, :, :3], -x[:, :, 3:]], dim=2)
    assert torch.equal(run(changed)[:, :, :3], whole[:, :, :3]) == causal
