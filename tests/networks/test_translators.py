"""Networks that make a picture of another: their public counts, how far they see, and pictures of any size."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from limner.networks.gans.patchgan import PatchGAN, PixelGAN
from limner.networks.gans.skip_unet import SkipUNet
from limner.networks.gans.translator import ResNetTranslator
from limner.networks.unets.local import LocalLevels, LocalUNet


def count(make: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def test_counts_of_the_resnet():
    assert count(lambda: ResNetTranslator(3, 3)) == 11_378_179
    assert count(lambda: ResNetTranslator(3, 3, blocks=6)) == 7_837_699
    assert count(lambda: ResNetTranslator(1, 1)) == 11_365_633
    assert count(lambda: ResNetTranslator(4, 4)) == 11_384_452
    assert count(lambda: ResNetTranslator(3, 3, antialias=True)) == 11_378_179


def test_counts_of_the_unet():
    assert count(lambda: SkipUNet(3, 3)) == 54_413_955
    assert count(lambda: SkipUNet(3, 3, halvings=7)) == 41_828_995


def test_counts_of_patch_discriminators():
    for layers, expected in {1: 136_385, 2: 662_977, 3: 2_764_737, 4: 6_959_553, 5: 11_154_369}.items():
        assert count(lambda layers=layers: PatchGAN(3, layers=layers, norm="instance")) == expected
    assert count(lambda: PatchGAN(6)) == 2_768_705
    assert count(lambda: PatchGAN(6, norm="instance")) == 2_767_809
    assert count(lambda: PixelGAN(6)) == 9_024


def without_norms(network: nn.Module) -> nn.Module:
    """The network in float64 with positive weights and nothing but convolutions, so that no slope vanishes."""
    for module in [network, *network.modules()]:
        for name, child in module.named_children():
            if type(child).__name__ in ("InstanceNorm", "ReLU", "ChannelNorm"):
                setattr(module, name, nn.Identity())
    for p in network.parameters():
        nn.init.constant_(p, 0.01 if p.ndim > 1 else 0.0)
    return network.double()


def sight(forward: Callable[[Tensor], Tensor], size: int, at: range) -> tuple[int, int]:
    """(pixels that an output pixel depends on, the most of them to one side), over the places of ``at``."""
    widths, sides = [], []
    for place in at:
        image = torch.rand(1, 1, size, size, dtype=torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad(forward(image)[0, 0, place, place], image)
        seen = slope[0, 0].abs().sum(0).nonzero().flatten()
        widths.append(int(seen.max() - seen.min()) + 1)
        sides.append(max(place - int(seen.min()), int(seen.max()) - place))
    return max(widths), max(sides)


@pytest.mark.parametrize(("blocks", "pixels"), [(6, 121), (9, 169)])
def test_sight_of_the_resnet_without_its_norms(blocks: int, pixels: int):
    for antialias in (False, True):
        network = without_norms(ResNetTranslator(1, 1, 4, blocks, antialias))
        assert isinstance(network, ResNetTranslator)
        body = nn.Sequential(network.stem, *network.down, *network.blocks, network.up)
        width, side = sight(body, 256, range(128, 132))
        assert side == network.margin
        assert antialias or width == pixels


def test_sight_of_the_local_unet():
    levels = LocalLevels((4, 4, 4), (1, 2, 1))
    network = without_norms(LocalUNet(1, 1, 8, levels))
    assert isinstance(network, LocalUNet)

    def forward(image: Tensor) -> Tensor:
        return network(image, torch.ones(1, 8, dtype=torch.float64))

    width, side = sight(forward, 256, range(128, 136))
    assert network.margin - 8 <= side <= network.margin
    assert width < 2 * network.margin


def test_a_tile_of_the_local_unet_equals_the_whole():
    """At places that are multiples of its factor, with the margin around it."""
    torch.manual_seed(0)
    network = LocalUNet(3, 3, 8, LocalLevels((8, 8), (1, 1)))
    for p in network.parameters():
        nn.init.normal_(p, 0.0, 0.2)
    image, embedding = torch.rand(1, 3, 128, 120), torch.rand(1, 8)
    start = -(-network.margin // network.multiple) * network.multiple
    with torch.no_grad():
        whole = network(image, embedding)
        tile = network(image[..., : 2 * start + 16, : 2 * start + 16], embedding)
    inside = slice(start, start + 16)
    assert_close(tile[..., inside, inside], whole[..., inside, inside], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (30, 18), (33, 7)])
def test_pictures_of_any_size(size: tuple[int, int]):
    networks = [ResNetTranslator(3, 4, 4, 2), ResNetTranslator(3, 4, 4, 2, True), SkipUNet(3, 4, 4, 3)]
    for network in networks:
        picture = network(torch.rand(2, 3, *size))
        assert picture.shape == (2, 4, *size) and picture.isfinite().all() and picture.abs().max() <= 1


def test_dropout_of_the_unet_also_acts_when_it_draws():
    """Isola 2017, 3.2: by the pictures' own numbers; and each picture is normalised by itself."""
    torch.manual_seed(0)
    network = SkipUNet(1, 1, 4, 6).eval()
    image = torch.rand(3, 1, 64, 64)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]

    def draw(rows: slice) -> Tensor:
        for i, generator in enumerate(generators):
            generator.manual_seed(i)
        own = generators[rows]
        return network(image[rows], lambda *shape: torch.stack([torch.rand(shape, generator=g) for g in own]))

    with torch.no_grad():
        together, alone = draw(slice(0, 3)), draw(slice(1, 2))
        assert_close(together[1:2], alone)
        assert not torch.equal(network(image), network(image)), "torch's generator, where none is given"


def test_float64_stays():
    network, image = ResNetTranslator(3, 3, 4, 1).double(), torch.rand(1, 3, 8, 8, dtype=torch.float64)
    assert network(image).dtype == torch.float64


def test_the_unet_normalises_each_picture_by_itself_in_training_too():
    network, image = SkipUNet(1, 1, 4, 4, dropout=0.0).train(), torch.rand(3, 1, 16, 16)
    assert_close(network(image)[1:2], network(image[1:2]), atol=1e-5, rtol=1e-4)


def test_features_of_cut():
    network = ResNetTranslator(3, 3, 8, antialias=True)
    found = network.features(torch.rand(2, 3, 32, 32))
    assert [f.shape[1] for f in found] == network.feature_widths == [3, 16, 32, 32, 32]
    assert [f.shape[-1] for f in found] == [32, 32, 16, 8, 8]
    paper = ResNetTranslator(3, 3, antialias=True)
    assert paper.feature_widths == [3, 128, 256, 256, 256]


def test_without_its_first_norm_the_resnet_sees_colours():
    """With it, the same picture on a lighter ground gives the same result."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 16, 16)
    for first_norm in (True, False):
        network = ResNetTranslator(3, 3, 8, 1, first_norm=first_norm)
        for p in network.parameters():
            nn.init.normal_(p, 0.0, 0.2)
        with torch.no_grad():
            change = (network(image) - network(image + 0.5)).abs().max()
        assert (change < 1e-3) == first_norm
