"""Model files and checkpoints as they are read: only what is sound and finite, also while another process saves."""

import json
import multiprocessing
import random
import resource
import struct
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

from limner import checkpoint, families
from limner.checkpoint import make_header, write_model
from limner.checkpoint.tensors import LONGEST_HEADER, TYPES, read_tensors
from limner.config import Run
from limner.core import ImageSpec
from limner.settings import DataOptions, LimnerError

SPEC = ImageSpec(3, 8, 6)
SAVES = 50  # while another process reads


@pytest.fixture
def run(toy):
    preset = toy.presets["tiny"]
    return Run("toy", ("shapes",), "tiny", None, "10m", 0, preset.model, preset.training, DataOptions())


@pytest.fixture
def weights(toy, run):
    torch.manual_seed(0)
    return {name: value.clone() for name, value in toy(run.model, SPEC).state_dict().items()}


def save(folder, run, weights, seen, **state):
    live = {f"model/{name}": value for name, value in weights.items()}
    checkpoint.save(folder, weights, make_header(run, SPEC, seen), live, {"seen": seen, **state})


# ---- what is refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, run, weights, value):
    weights["discriminator.weight"][0, 1] = value
    write_model(tmp_path / "m.safetensors", weights, make_header(run, SPEC, 0))
    with pytest.raises(
        LimnerError, match=r"m.safetensors hold infinite values or NaN in discriminator.weight"
    ):
        checkpoint.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("part", ["model", "live"])
def test_a_checkpoint_that_is_not_finite_falls_back(tmp_path, run, weights, part):
    save(tmp_path, run, weights, 8)
    bad = {name: value.clone() for name, value in weights.items()}
    bad["generator.0.bias"][0] = float("nan")
    live = {f"model/{name}": value for name, value in (bad if part == "live" else weights).items()}
    header = make_header(run, SPEC, 16)
    checkpoint.save(tmp_path, weights if part == "live" else bad, header, live, {"seen": 16})
    with pytest.warns(
        UserWarning, match=rf"{part}.safetensors holds infinite values or NaN in .*generator.0.bias"
    ):
        assert checkpoint.resume(tmp_path).state["seen"] == 8
    if part == "model":
        with pytest.warns(UserWarning, match="NaN"):
            assert checkpoint.load(tmp_path).header["seen"] == 8


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64, torch.uint8, torch.complex64])
def test_weights_of_another_type_are_refused_by_name(tmp_path, run, weights, dtype):
    weights["generator.0.bias"] = torch.ones(4).to(dtype)
    write_model(tmp_path / "m.safetensors", weights, make_header(run, SPEC, 0))
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(LimnerError, match=rf"1 of another type: generator.0.bias \({kind}, not float32\)"):
        checkpoint.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_floating_weights_are_cast(tmp_path, run, weights, dtype):
    weights["generator.0.bias"] = torch.tensor([1.0, -2.0, 0.5, 0.0]).to(dtype)
    write_model(tmp_path / "m.safetensors", weights, make_header(run, SPEC, 0))
    bias = checkpoint.load(tmp_path / "m.safetensors").model.generator[0].bias
    assert bias.dtype == torch.float32 and bias.tolist() == [1.0, -2.0, 0.5, 0.0]
    if dtype == torch.float64:  # finite there, infinite here
        weights["generator.0.bias"][0] = 1e300
        write_model(tmp_path / "m.safetensors", weights, make_header(run, SPEC, 0))
        with pytest.raises(LimnerError, match=r"infinite values or NaN in generator.0.bias"):
            checkpoint.load(tmp_path / "m.safetensors")


def test_large_finite_weights_whose_sum_overflows_are_finite():
    assert checkpoint.not_finite({"a": torch.full((4,), 3e38), "b": torch.tensor([1e38, float("nan")])}) == [
        "b"
    ]


@pytest.mark.parametrize("content", [b"", b"5", b"null", b"[" * 10_000, b"{}", b"\xff\xfe", b'{"digest": 1}'])
def test_a_state_of_any_content_is_damage(tmp_path, run, weights, content):
    for seen in (8, 16):
        save(tmp_path, run, weights, seen)
    (tmp_path / "checkpoints" / "000000016" / "state.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"state.json is damaged.*Using"):
        assert checkpoint.resume(tmp_path).state["seen"] == 8


# ---- headers that lie


def entry(kind="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets)}


def lie(header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


LIES = {
    "one name twice": lie(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2)),
    "a name within twice": lie(b'{"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "bytes that nothing describes": lie({"a": entry()}),
    "a gap": lie({"a": entry(), "b": entry(shape=(1,), offsets=(12, 16))}),
    "an overlap": lie({"a": entry(), "b": entry(shape=(3,), offsets=(4, 16))}),
    "a number that is true": lie({"a": entry(shape=(True, 4), offsets=(0, 16))}),
    "a shape of fractions": lie({"a": entry(shape=(4.0,), offsets=(0, 16))}),
    "a huge product": lie(
        {"a": entry(shape=(2**62, 2**62, 0, 2**62), offsets=(0, 0)), "b": entry(shape=(4,))}
    ),
    "more fields": lie({"a": entry(shape=(4,), offsets=(0, 16)) | {"more": 1}}),
    "metadata of numbers": lie({"__metadata__": {"a": 1}, "a": entry(shape=(4,), offsets=(0, 16))}),
    "a list of metadata": lie({"__metadata__": ["a"], "a": entry(shape=(4,), offsets=(0, 16))}),
    "an unknown type": lie({"a": entry("F4", (4,), (0, 16))}),
    "a type that is a list": lie({"a": entry(["F32"], (4,), (0, 16))}),  # type: ignore[arg-type]
    "no table": lie({"a": 5}),
    "a long header": lie(b"{" + b" " * LONGEST_HEADER + b"}"),
    "a header beyond the file": struct.pack("<Q", 2**40) + b"{}" + bytes(100),
}


@pytest.mark.parametrize("kind", LIES)
def test_headers_that_lie_are_damage(kind, tmp_path):
    (tmp_path / "lie.safetensors").write_bytes(LIES[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(checkpoint.Damaged, match=r"lie.safetensors is damaged, incomplete, or not"):
        read_tensors(tmp_path / "lie.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_half_a_character_in_a_header_is_damage(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(lie(b'{"__metadata__":{"limner":"\\ud800","digest":""}}', b""))
    with pytest.raises(checkpoint.Damaged, match="does not match its hash"):
        checkpoint.read_model(tmp_path / "m.safetensors")


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("mapped", [False, True])
def test_every_type_is_read_as_the_library_reads_it(tmp_path, mapped):
    tensors = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in TYPES.items()}
    tensors |= {"empty": torch.zeros(0, 2), "number": torch.tensor(7.0)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"é": "text"})
    content = read_tensors(tmp_path / "x.safetensors", mapped)
    assert content.metadata == {"é": "text"} and content.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert content.tensors[name].dtype == value.dtype and content.tensors[name].shape == value.shape
        assert (
            content.tensors[name].reshape(-1).view(torch.uint8).tolist()
            == value.reshape(-1).view(torch.uint8).tolist()
        )


def test_mutated_files_are_refused_or_read_as_they_are(tmp_path):
    """One sentence, or what the library reads too."""
    path, rng = tmp_path / "x.safetensors", random.Random(0)
    tensors = {
        "a": torch.randn(7, 3),
        "b": torch.arange(5),
        "c": torch.zeros(0, 2),
        "d": torch.randn(3).bfloat16(),
    }
    safetensors.torch.save_file(tensors, path, {"limner": "{}"})
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    accepted = 0
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(rng.choice([header, len(whole)]))] = rng.choice(b'0123456789"{}[],: \xff')
        cut = rng.randrange(len(whole)) if rng.random() < 0.2 else len(whole)
        path.write_bytes(content[:cut])
        try:
            read = read_tensors(path, mapped=len(content) % 2 == 0).tensors
        except LimnerError as error:
            assert str(path) in str(error)
            continue
        accepted += 1
        with safetensors.safe_open(path, "pt") as file:
            theirs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert read.keys() == theirs.keys()
        for name, value in theirs.items():
            assert value.dtype == read[name].dtype and value.shape == read[name].shape
            assert (
                value.reshape(-1).view(torch.uint8).tolist()
                == read[name].reshape(-1).view(torch.uint8).tolist()
            )
    assert 5 < accepted < 400


# ---- while another process saves


def save_often(folder: Path, run: Run, weights: dict, toys: str) -> None:
    families.__path__.append(toys)
    for seen in range(8, 8 * SAVES, 8):
        save(folder, run, weights, seen)


def test_a_run_is_read_while_it_saves(tmp_path, run, weights):
    """Each reading finds a sound run, without a warning, whatever the save has got to."""
    save(tmp_path, run, weights, 0)
    toys = str(Path(__file__).parent / "toy")
    saver = multiprocessing.get_context("fork").Process(
        target=save_often, args=(tmp_path, run, weights, toys)
    )
    saver.start()
    last = count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while saver.is_alive() or not count:
            loaded, resumed = checkpoint.load(tmp_path), checkpoint.resume(tmp_path)
            assert resumed and loaded.header["seen"] >= last
            last, count = loaded.header["seen"], count + 1
    saver.join()
    assert saver.exitcode == 0 and checkpoint.resume(tmp_path).state["seen"] == 8 * (SAVES - 1) and count > 5
