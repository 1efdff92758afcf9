"""Which precision `auto` means where."""

import platform

import pytest
import torch

from limner.core import Condition, ImageSpec
from limner.device import autocast, bf16_is_fast, keep_freed_memory, pick_device
from limner.families.flow import Flow
from limner.inference.pipeline import generate
from limner.settings import LimnerError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, True),
        (
            {"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False},
            False,
        ),  # measured: half the speed
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "AMD Ryzen", "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_bf16_is_chosen_only_where_it_is_fast(capabilities, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert bf16_is_fast(CPU) == fast
    with autocast(CPU, "auto"):
        assert torch.is_autocast_enabled("cpu") == fast
    with autocast(CPU, "float32"):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(CPU, "bf16"):
        assert torch.is_autocast_enabled("cpu")


def test_the_precision_reaches_the_sampler():
    torch.manual_seed(0)
    model = Flow(Flow.presets["tiny"].model, ImageSpec(3, 16, 16)).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    exact, rough = (generate(model, Condition(2), [0, 1], precision=p) for p in ("float32", "bf16"))
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().mean() < 0.05


def test_an_older_torch_that_cannot_say_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not bf16_is_fast(CPU)
    assert bf16_is_fast(torch.device("cuda"))


def faults_of_blocks() -> int:
    """Pages that allocating and freeing 20 blocks of 4 MB for some rounds has the system clear."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [torch.ones(2**20) for _ in range(20)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept():
    keep_freed_memory()
    faults_of_blocks()
    assert faults_of_blocks() < 2000  # else 100,000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_a_clear_error():
    assert pick_device("auto") == CPU
    with pytest.raises(LimnerError, match="use the device cpu"):
        pick_device("cuda")


@pytest.mark.parametrize("name", [*([] if torch.backends.mps.is_available() else ["mps"]), "gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_a_clear_error(name):
    with pytest.raises(LimnerError, match=r"There is no .*device"):
        pick_device(name)
