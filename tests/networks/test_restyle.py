"""Networks of style transfer: sizes, what a pixel depends on, the statistics of a whole picture."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from limner.networks.instance import moments, statistics_from
from limner.networks.microast import Block, MicroAST
from limner.networks.restyle import AdaptiveNorm, StyledConv, StyleNetwork, adain


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("styles", "parameters"),
    [(1, 1_679_235), (2, 1_682_435), (8, 1_701_635), (16, 1_727_235), (32, 1_778_435)],
)
def test_the_network_of_johnson_has_the_published_size(styles: int, parameters: int) -> None:
    with torch.device("meta"):
        network = StyleNetwork(3, styles)
    assert count(network) == parameters == 1_676_035 + 3_200 * styles


@pytest.mark.parametrize(
    ("channels", "width", "blocks", "kernel"), [(1, 32, 5, 9), (4, 8, 3, 5), (3, 16, 1, 3)]
)
def test_other_widths_and_channels(channels: int, width: int, blocks: int, kernel: int) -> None:
    with torch.device("meta"):
        network = StyleNetwork(channels, 2, width, blocks, kernel)
    w, inner = width, 2 * blocks
    convs = 2 * channels * w * kernel**2 + w + channels + 4 * 9 * w * w + 6 * w + 2 * 9 * 8 * w * w
    assert (
        count(network) == convs + 3 * w + inner * (9 * 16 * w * w + 4 * w) + (10 * w + inner * 4 * w) * 2 * 2
    )


def test_microast_has_the_published_size() -> None:
    with torch.device("meta"):
        network = MicroAST(3)
    assert [count(part) for part in network.children()] == [157_792, 157_792, 2_560, 153_843]
    assert count(network) == 471_987


def johnson() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    network = StyleNetwork(3, 3, width=8)
    for layer in network.modules():
        if isinstance(layer, StyledConv):
            nn.init.normal_(layer.gain, 1, 0.3)
            nn.init.normal_(layer.shift, 0, 0.3)
    shares = torch.tensor([[0.2, 0.0, 0.8]])
    return network, lambda x: network(x, shares.expand(len(x), 3).to(x.dtype))


def microast() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    network = MicroAST(3, width=8)
    with torch.no_grad():
        signals = network.signals(torch.rand(1, 3, 24, 16) * 2 - 1)
    return network, lambda x: network(x, signals)


def of_unit_variance(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(x), groups), torch.ones(len(x), groups)


@pytest.mark.parametrize(("make", "field"), [(johnson, 111), (microast, 99)])
def test_a_pixel_depends_on_its_margin_once_statistics_are_given(make: Callable, field: int) -> None:
    """By gradient, for each place that a pixel can have in its group of 4x4."""
    network, run = make()
    side, widest, farthest = 136, 0, 0
    for at in range(side // 2, side // 2 + 4):
        x = torch.rand(1, 3, side, side, requires_grad=True)
        with statistics_from(network, of_unit_variance):
            (slope,) = torch.autograd.grad(run(x)[0, :, at, at].sum(), x)
        rows = slope.abs().sum((0, 1, 3)).nonzero().flatten()
        widest = max(widest, int(rows[-1] - rows[0]) + 1)
        farthest = max(farthest, at - int(rows[0]), int(rows[-1]) - at)
    assert widest == field
    assert farthest == network.margin


@pytest.mark.parametrize("make", [johnson, microast])
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (11, 33)])
def test_takes_any_size_alike_in_training_and_in_evaluation(make: Callable, size: tuple[int, int]) -> None:
    network, run = make()
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        painted = run(x)
        assert painted.shape == x.shape and painted.isfinite().all()
        network.eval()
        assert torch.equal(run(x), painted)


@pytest.mark.parametrize("make", [johnson, microast])
def test_a_picture_is_painted_alone_as_in_a_batch(make: Callable) -> None:
    _, run = make()
    x = torch.rand(3, 3, 16, 20)
    torch.testing.assert_close(run(x[1:2]), run(x)[1:2], atol=1e-5, rtol=0)


def test_a_blend_is_the_mean_of_what_styles_learnt() -> None:
    torch.manual_seed(0)
    layer = StyledConv(2, 4, 3, styles=2)
    nn.init.normal_(layer.gain)
    nn.init.normal_(layer.shift)
    x = torch.rand(1, 2, 6, 6)
    one, other, between = (layer(x, torch.tensor([[a, 1 - a]])) for a in (1.0, 0.0, 0.25))
    torch.testing.assert_close(between, 0.25 * one + 0.75 * other)


def test_adaptive_norm_takes_the_statistics_of_the_whole_picture() -> None:
    """They are biased there: the picture agrees to 1 / (2 N) of its deviation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 20, 30, generator=generator)
    mean, std = torch.randn(1, 4, generator=generator), torch.rand(1, 4, generator=generator) + 0.5
    norm, known = AdaptiveNorm(4), moments(x, 4)
    whole = norm(x, std, mean, 0.6)
    assert torch.equal(whole, adain(x, mean, std, 0.6))
    with statistics_from(norm, lambda part, groups: known):
        part = norm(x[..., :7], std, mean, 0.6)
    torch.testing.assert_close(part, whole[..., :7], atol=4 / (2 * 600), rtol=0)
    assert not torch.allclose(norm(x[..., :7], std, mean, 0.6), whole[..., :7], atol=0.1)


def test_filters_are_modulated_by_their_output_and_their_input() -> None:
    torch.manual_seed(0)
    block, x = Block(4), torch.randn(2, 4, 5, 5)
    gain, skip = torch.randn(2, 2, 4)
    first, second = block.convs
    wide = [v[:, :, None, None] for v in (gain, skip)]
    hidden = torch.relu(wide[0] * first(x) + wide[1] * x)
    torch.testing.assert_close(block(x, gain, skip), x + wide[0] * second(hidden) + wide[1] * hidden)
    torch.testing.assert_close(block(x, 0 * gain, 0 * skip), x)
