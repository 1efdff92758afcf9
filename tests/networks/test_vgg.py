"""VGG-16 and VGG-19 for losses."""

import pytest
import torch
from torch.testing import assert_close

from limner.networks.checks import SettingsError
from limner.networks.vgg import DEVIATION, MEAN, VGG, layer_places


@pytest.mark.parametrize(
    "depth, layer, count",
    [
        (16, "relu3_3", 1_735_488),
        (16, "relu4_3", 7_635_264),
        (19, "relu4_1", 3_505_728),
        (19, "relu5_4", 20_024_384),
        (19, "conv5_4", 20_024_384),
    ],
)
def test_parameters(depth, layer, count):
    with torch.device("meta"):
        network = VGG(depth, (layer,))
    assert sum(p.numel() for p in network.parameters()) == count


def test_weights_have_the_names_of_torchvision():
    for depth, places in {
        16: (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        19: (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    }.items():
        assert tuple(at for name, at in layer_places(depth).items() if name.startswith("conv")) == places
        with torch.device("meta"):
            names = VGG(depth, ("relu5_3" if depth == 16 else "relu5_4",)).state_dict()
        assert set(names) == {f"features.{at}.{kind}" for at in places for kind in ("weight", "bias")}


def test_layers_before_and_after_the_relu():
    network, image = VGG(16, ("relu2_2", "conv1_1", "conv2_2")), torch.rand(2, 3, 32, 40) * 2 - 1
    relu, first, before = network(image)
    assert relu.shape == (2, 128, 16, 20) and first.shape == (2, 64, 32, 40)
    assert before.min() < 0
    assert_close(relu, before.relu())


def test_pixels_are_normalised_as_imagenet_has_them():
    network = VGG(16, ("conv1_1",))
    network.features[0].weight.zero_()[:3, :, 1, 1] = torch.eye(3)
    network.features[0].bias.zero_()
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    seen = network(image)[0][:, :3]
    for channel, (mean, deviation) in enumerate(zip(MEAN, DEVIATION, strict=True)):
        assert_close(seen[:, channel], ((image[:, channel] + 1) / 2 - mean) / deviation)


def test_small_and_grey_images_are_taken():
    assert VGG(19, ("relu5_4",))(torch.zeros(1, 1, 8, 12))[0].shape == (1, 512, 2, 3)


def test_an_unknown_layer_is_refused():
    with pytest.raises(SettingsError, match="VGG-16 has no layer relu5_4"):
        VGG(16, ("relu1_1", "relu5_4"))
