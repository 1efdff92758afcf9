"""Networks that enlarge pictures: their published sizes, their arithmetic, and how far they see."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from limner.networks.checks import SettingsError
from limner.networks.restoration.fsrcnn import FSRCNN
from limner.networks.restoration.span import SPAN, BranchedConvolution, attend_without_parameters
from limner.networks.restoration.srgan import Discriminator, SRResNet
from tests.helpers import golden


def count(make):
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


@pytest.mark.parametrize(
    "make, published",
    [
        (lambda: SPAN(3, 3, 4), 634_048),
        (lambda: SPAN(3, 3, 4, branched=False), 150_688),
        (lambda: SPAN(3, 3, 4, 48, branched=False), 426_288),
        (lambda: SPAN(3, 3, 2, 48, branched=False), 410_700),
        (lambda: SRResNet(3, 3, 2), 1_401_749),
        (lambda: SRResNet(3, 3, 4), 1_549_462),
        (lambda: SRResNet(3, 3, 8), 1_697_175),
        (lambda: SRResNet(3, 3, 2, slopes="channel"), 1_402_883),
        (lambda: SRResNet(3, 3, 4, slopes="channel"), 1_550_659),
        (lambda: SRResNet(3, 3, 8, slopes="channel"), 1_698_435),
        (lambda: Discriminator(3, (96, 96)), 23_565_505),
        (lambda: Discriminator(3, (128, 128)), 38_245_569),
        (lambda: Discriminator(3, (192, 192)), 80_188_609),
        (lambda: FSRCNN(1, 1, 4), 12_809),
    ],
)
def test_parameters(make, published):
    assert count(make) == published


def test_srresnet_by_part():
    with torch.device("meta"):
        network = SRResNet(3, 3, 4)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert list(parts.values()) == [15_617, 1_185_808, 37_056, 295_426, 15_555]


def test_the_attention_of_span():
    given, expected = golden("span_attention")
    assert_close(attend_without_parameters(given["out3"], given["x"]), expected["out"])
    none = torch.zeros_like(given["out3"])
    assert_close(attend_without_parameters(given["out3"], none), given["out3"] * expected["attention"])


def test_pixels_are_shuffled_in_the_order_of_pytorch():
    given, expected = golden("pixel_shuffle")
    assert_close(F.pixel_shuffle(given["x"], given["r"]), expected["pixel_shuffle"])
    network = SPAN(3, 2, 2, width=8, blocks=1).double()
    for parameter in network.last.parameters():
        nn.init.zeros_(parameter)
    network.last.bias.data.copy_(torch.arange(8.0))
    one = network(torch.zeros(1, 3, 1, 1, dtype=torch.float64))
    assert_close(one[0], torch.arange(8.0, dtype=torch.float64).reshape(2, 2, 2))


def test_slopes():
    given, expected = golden("prelu")
    for name in ("shared", "by_channel"):
        slope = torch.as_tensor(given[name], dtype=torch.float64).reshape(-1).requires_grad_()
        out = F.prelu(given["x"][None], slope)
        assert_close(out[0], expected[name])
        out.sum().backward()
        assert_close(slope.grad.squeeze(), torch.as_tensor(expected[f"slope_gradient_{name}"]).double())
    network = SRResNet(3, 3, 2, width=8, blocks=1)
    assert {slope.item() for slope in network.undecayed} == {0.25} and len(network.undecayed) == 3


def branches(layer, x):
    """The published training form: the padded picture through all branches."""
    padded = F.pad(x, (1, 1, 1, 1))
    return layer.narrow(layer.middle(layer.widen(padded))) + layer.beside(x)


def test_branches_merge_into_one_convolution_at_the_border_too():
    layer = BranchedConvolution(3, 5).double()
    x = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    assert_close(layer(x), branches(layer, x))
    assert_close(F.conv2d(x, *layer.kernel(), padding=1), branches(layer, x))


def test_float64_stays():
    with torch.no_grad():
        made = Discriminator(3, (16, 16), 2, 4).double()(torch.rand(2, 3, 16, 16, dtype=torch.float64))
    assert made.dtype == torch.float64


def test_the_merged_network_is_the_same_function():
    network = SPAN(3, 3, 4, width=8, blocks=2).double()
    merged = network.merged()
    x = torch.rand(1, 3, 9, 5, dtype=torch.float64)
    assert_close(merged(x), network(x))
    assert not any(isinstance(part, BranchedConvolution) for part in merged.modules())
    before = merged(x)
    network.first.widen.weight.data.mul_(2)
    assert_close(merged(x), before)


def test_merging_draws_no_random_number():
    network = SPAN(3, 3, 2, width=8, blocks=1)
    state = torch.get_rng_state()
    network.merged()
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_reach_every_branch():
    network = SPAN(3, 3, 2, width=8, blocks=2)
    network(torch.rand(1, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


NETWORKS = {
    "span": (lambda scale, blocks: SPAN(1, 1, scale, width=4, blocks=blocks, branched=False), (2, 3, 4)),
    "srresnet": (lambda scale, blocks: SRResNet(1, 1, scale, width=4, blocks=blocks), (2, 4, 8)),
    "fsrcnn": (lambda scale, blocks: FSRCNN(1, 1, scale, width=4, shrunk=4, blocks=blocks), (2, 3, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_margins_are_how_far_a_pixel_sees(name):
    """By gradients, where every weight is positive so that none cancel."""
    make, scales = NETWORKS[name]
    for scale in scales:
        network = make(scale, 2).double().eval()
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.1)
        side = 2 * network.margin + 5
        x = torch.full((1, 1, side, side), 0.5, dtype=torch.float64, requires_grad=True)
        middle = side // 2 * scale
        farthest = 0
        for row, column in ((middle, middle), (middle + scale - 1, middle + scale - 1)):
            (gradient,) = torch.autograd.grad(network(x)[0, 0, row, column], x)
            seen = (gradient[0, 0] != 0).nonzero()
            farthest = max(farthest, int((seen - side // 2).abs().max()))
        assert farthest == network.margin, scale


def test_the_published_networks_see_as_far_as_published():
    with torch.device("meta"):
        assert SPAN(3, 3, 4).margin == 43 // 2
        assert SRResNet(3, 3, 4).margin == 80 // 2


@pytest.mark.parametrize("scale", [3, 6, 1])
def test_srresnet_doubles(scale):
    with pytest.raises(SettingsError, match="2, 4 or 8 times"):
        SRResNet(3, 3, scale)
