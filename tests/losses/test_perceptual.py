"""Networks of features that a setting names, and distances in them."""

import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from limner.losses import perceptual
from limner.losses.perceptual import (
    check_network,
    default_network,
    feature_error,
    feature_maps,
    network_title,
    perceptual_distance,
)
from limner.networks import imagenet, random_vgg
from limner.networks.vgg import VGG
from limner.settings import LimnerError


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """VGG-16 to relu2_2 with weights by chance, and a layer of the classifier besides."""
    torch.manual_seed(0)
    weights = VGG(16, ("relu2_2",)).state_dict()
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file({**weights, "classifier.0.weight": torch.zeros(2)}, path)
    return path


def test_a_file_gives_the_layers_that_are_asked_for(vgg_file):
    torch.manual_seed(0)
    network, image = VGG(16, ("relu2_2",)), torch.rand(1, 3, 32, 32)
    (found,) = feature_maps(str(vgg_file), image, ("relu2_2",))
    assert_close(found, network(image)[0])
    assert network_title(str(vgg_file)) == "VGG-16" and network_title("random") == "random"


def test_gradients_reach_the_image_and_no_weight(vgg_file):
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    feature_error(feature_maps(str(vgg_file), image, ("conv2_1",)), [torch.zeros(1, 128, 16, 16)]).backward()
    assert image.grad.abs().sum() > 0
    network = perceptual.feature_network(str(vgg_file), ("conv2_1",), torch.device("cpu"))
    assert not any(p.requires_grad for p in network.parameters())


def test_what_cannot_be_used_is_refused_in_one_sentence(vgg_file, tmp_path):
    pickled = tmp_path / "vgg16.pth"
    torch.save(VGG(16, ("relu1_2",)).state_dict(), pickled)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(vgg_file.read_bytes()[:-1000])
    weights = VGG(16, ("relu2_2",)).state_dict()
    shaped, infinite = tmp_path / "shaped.safetensors", tmp_path / "infinite.safetensors"
    save_file({**weights, "features.0.weight": torch.zeros(64, 1, 3, 3)}, shaped)
    save_file({**weights, "features.2.bias": torch.full((64,), torch.inf)}, infinite)
    for path, words in {
        pickled: "is a pickle, which may run any code",
        broken: "is no whole safetensors file",
        shaped: "has features.0.weight of 64x1x3x3, not 64x3x3x3",
        infinite: "has infinite values or NaN in features.2.bias",
        tmp_path: "is no file",
        tmp_path / "none": "is no file",
    }.items():
        with pytest.raises(LimnerError, match=words) as caught:
            check_network(str(path), ("relu2_2",))
        assert "features.0.weight to features.28.weight (VGG-16)" in str(caught.value)
        assert "not BGR" in str(caught.value) and str(caught.value).count(".\n") == 0
    with pytest.raises(LimnerError, match=r"lacks features.10.weight, .* and 1 more of VGG-16"):
        check_network(str(vgg_file), ("relu3_2",))
    with pytest.raises(LimnerError, match="VGG-16 has no layer relu5_4"):
        check_network(str(vgg_file), ("relu5_4",))
    with pytest.raises(LimnerError, match="Did you mean imagenet"):
        check_network("imagnet")


def test_a_copied_file_of_vgg19_is_told_by_its_third_block(tmp_path, vgg_file):
    weights = {"features.16.weight": torch.zeros(256, 256, 3, 3)}
    save_file(weights, tmp_path / "vgg.safetensors")
    assert network_title(str(tmp_path / "vgg.safetensors")) == "VGG-19"
    shutil.copy(vgg_file, tmp_path / "other.safetensors")
    assert network_title(str(tmp_path / "other.safetensors")) == "VGG-16"


def test_the_default_is_imagenet_where_it_is_installed(monkeypatch):
    for there, name in ((True, "imagenet"), (False, "random")):
        monkeypatch.setattr(perceptual, "is_installed", lambda there=there: there)
        assert default_network() == name


def test_distances_are_zero_only_for_equal_maps():
    one = [torch.rand(2, 3, 4, 4), torch.rand(2, 5, 2, 2)]
    other = [x + 0.1 * torch.rand_like(x) for x in one]
    assert_close(perceptual_distance(one, one), torch.zeros(2))
    assert perceptual_distance(*([x.double() for x in each] for each in (one, other))).dtype == torch.float64
    assert (perceptual_distance(one, other) > 0).all()
    by_hand = sum(((x - y) / 12.75).square().mean() for x, y in zip(one, other, strict=True))
    assert_close(feature_error(one, other, 1 / 12.75), by_hand)


@pytest.mark.parametrize("network", ["random", "imagenet", "vgg"])
def test_a_network_that_was_made_to_measure_still_has_gradients(network, vgg_file):
    """A process may evaluate first, without gradients, and train then."""
    if network == "imagenet" and not perceptual.is_installed():
        pytest.skip("limner[imagenet] is not installed")
    for cached in (random_vgg.random_network, imagenet.imagenet_network, perceptual._load_vgg):
        cached.cache_clear()
    name, layers = (str(vgg_file), ("relu1_2",)) if network == "vgg" else (network, ())
    with torch.inference_mode():
        feature_maps(name, torch.rand(1, 3, 32, 32), layers)
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    sum(x.sum() for x in feature_maps(name, image, layers)).backward()
    assert image.grad.abs().sum() > 0
