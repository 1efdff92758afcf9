"""A model file that describes itself; saves that survive anything; a resume that is exact."""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

from limner import checkpoint, config, families
from limner.checkpoint import (
    Damaged,
    load_weights,
    make_header,
    pack_state,
    read_model,
    unpack_state,
    write_model,
)
from limner.checkpoint import tensors as tensor_files
from limner.checkpoint.tensors import digest_of
from limner.config import Run
from limner.core import ImageSpec
from limner.settings import DataOptions, LimnerError

SPEC = ImageSpec(3, 8, 6, classes=("cat", "søta", "\udcff", "日本"), captions=True)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(Path(__file__).parent / "toy")])
    return families.load("toy")


@pytest.fixture
def run(toy):
    preset = toy.presets["tiny"]
    return Run("toy", ("shapes",), "tiny", None, "10m", 0, preset.model, preset.training, DataOptions())


@pytest.fixture
def model(toy, run):
    torch.manual_seed(0)
    return toy(run.model, SPEC)


@pytest.fixture
def file(tmp_path, run, model):
    """A whole model file."""
    write_model(
        tmp_path / "model.safetensors", model.state_dict(), make_header(run, SPEC, 64, {"stage": "abc"})
    )
    return tmp_path / "model.safetensors"


def save(folder, run, model, seen, keep=2, **state):
    tensors = {name: tensor + seen for name, tensor in model.state_dict().items()}
    live = {f"model/{name}": tensor + 1 for name, tensor in tensors.items()}
    return checkpoint.save(folder, tensors, make_header(run, SPEC, seen), live, {"seen": seen, **state}, keep)


def check(resumed, model):
    """What ``save`` above wrote, to the bit."""
    seen = resumed.header["seen"]
    assert resumed.state["seen"] == seen
    for name, tensor in model.state_dict().items():
        assert torch.equal(resumed.model_tensors[name], tensor + seen)
        assert torch.equal(resumed.live_tensors[f"model/{name}"], tensor + seen + 1)
    return seen


def flip(path, at, bit=0):
    """Change one bit of a file, as a bad disk would: in place."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def same(a, b):
    """Equal in type, structure and every bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        assert torch.equal(*bits)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert a == b


# ---- one file


def test_a_file_describes_itself(file, run, model):
    header, tensors = read_model(file)
    same(dict(model.state_dict()), {name: tensors[name] for name in model.state_dict()})
    assert header["family"] == "toy" and header["seen"] == 64 and header["parents"] == {"stage": "abc"}
    assert header["format"] == config.FORMAT and header["versions"]["torch"] == torch.__version__
    assert len(header["digest"]) == 64
    loaded = checkpoint.load(file)
    assert (loaded.run, loaded.spec, loaded.path) == (run, SPEC, file) and not loaded.model.training
    same(dict(model.state_dict()), dict(loaded.model.state_dict()))
    assert [p.name for p in file.parent.iterdir()] == ["model.safetensors"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    os.umask(mask := os.umask(0))
    return mask


def test_loading_leaves_the_random_numbers_alone(file):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    checkpoint.load(file)
    assert torch.equal(torch.rand(4), expected)


def test_any_tensors(tmp_path):
    """Views, shared memory, other layouts, no elements, no dimensions, every width."""
    base = torch.arange(120.0)
    tensors = {
        "whole": base,
        "shared": base,
        "view": base[3:9],
        "columns": base.reshape(10, 12).t(),
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(7),
        "bf16": torch.randn(5).bfloat16(),
        "bool": torch.tensor([True, False]),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
    }
    write_model(tmp_path / "x.safetensors", tensors, {})
    _, read = read_model(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name in tensors:
        same(tensors[name].contiguous(), read[name])


def test_cut_anywhere(file, tmp_path):
    """Fault 17."""
    whole = file.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in [*range(0, 200), *range(200, len(whole), 37), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(LimnerError, match=r"cut.safetensors"):
            read_model(cut)
    cut.write_bytes(whole + b"\0")
    with pytest.raises(Damaged):
        read_model(cut)


def test_any_flipped_bit_is_noticed(file):
    size = file.stat().st_size
    for at in [*range(0, 120), *range(120, size, 13), *range(size - 20, size)]:
        bit = (at * 5) % 8
        flip(file, at, bit)
        with pytest.raises(LimnerError, match=r"model.safetensors"):
            read_model(file)
        flip(file, at, bit)
    read_model(file)


def lie(header, data=b"\0" * 64, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


LIES = {
    "long": lie({}, length=2**63),
    "longer than the file": lie({}, length=10**7),
    "no json": lie(b"{" * 50),
    "deep": lie(b'{"a":' * 50_000),
    "no utf-8": lie(b'{"\xff\xfe": 1}'),
    "list": lie(b"[]"),
    "overlap": lie({"a": entry([16], 0, 64), "b": entry([16], 0, 64)}),
    "beyond": lie({"a": entry([2**40], 0, 2**42)}),
    "overflow": lie({"a": entry([2**62, 2**62], 0, 64)}),
    "negative": lie({"a": entry([-1], 0, 64)}),
    "hole": lie({"a": entry([8], 32, 64)}),
    "backwards": lie({"a": entry([16], 64, 0)}),
    "mismatch": lie({"a": entry([15], 0, 64)}),
    "dtype": lie({"a": entry([16], 0, 64, "F31")}),
    "metadata": lie({"__metadata__": {"limner": 3}, "a": entry([16], 0, 64)}),
    "header": lie({"__metadata__": {"limner": "[" * 10**5, "digest": "x"}, "a": entry([16], 0, 64)}),
    "zero bytes": b"",
    "text": b"this is a text file\n" * 10,
}


@pytest.mark.parametrize("kind", LIES)
def test_a_header_that_lies(tmp_path, kind):
    """Fault 17: a clear error, and memory stays flat."""
    path = tmp_path / "lie.safetensors"
    path.write_bytes(LIES[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LimnerError, match=r"lie.safetensors .*damaged"):
        read_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize("text", ["[" * 10**5, "[]", "3", "{}", '{"format": "x"}', '{"format": 0}', "{"])
def test_a_header_that_lies_under_a_true_hash(tmp_path, text):
    path = tmp_path / "lie.safetensors"
    safetensors.torch.save_file({}, path, {"limner": text, "digest": digest_of(text, {})})
    with pytest.raises(Damaged, match="header cannot be read"):
        read_model(path)


def test_settings_that_lie_cost_no_memory(tmp_path, run, model):
    """A config of absurd size is noticed before a model of that size is made."""
    huge = dataclasses.replace(run, model=dataclasses.replace(run.model, width=2**20))
    write_model(tmp_path / "m.safetensors", model.state_dict(), make_header(huge, SPEC, 0))
    with pytest.raises(LimnerError, match="do not fit its settings"):
        checkpoint.load(tmp_path / "m.safetensors")


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_pickles_are_refused_by_content(tmp_path, monkeypatch, name):
    """Fault 19: refused, whatever the name, and never executed."""
    monkeypatch.chdir(tmp_path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        Path(name).write_bytes(pickle.dumps(Bomb(), protocol))
        with pytest.raises(LimnerError, match=r"pickle" if protocol > 1 else r"not a safetensors file"):
            checkpoint.load(name)
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(3), "b": Bomb()}, buffer, _use_new_zipfile_serialization=zipped)
        Path(name).write_bytes(buffer.getvalue())
        with pytest.raises(LimnerError, match="pickle"):
            checkpoint.load(name)
    assert not Path("exploded").exists()


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    """A header of 640 bytes begins with the two bytes of a pickle of protocol 2."""
    path = tmp_path / "m.safetensors"
    write_model(path, {"a": torch.zeros(3)}, {"padding": ""})
    padding = "x" * (640 - struct.unpack("<Q", path.read_bytes()[:8])[0])
    write_model(path, {"a": torch.zeros(3)}, {"padding": padding})
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert read_model(path)[0]["padding"] == padding


def test_weights_of_others_are_distinguished_from_damage(tmp_path):
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(LimnerError, match="no Limner header") as error:
        read_model(path)
    assert not isinstance(error.value, Damaged)


def test_a_missing_run_names_the_nearest(tmp_path, monkeypatch, run, model):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LimnerError, match=r"no run and no model at runs/demo\.$"):
        read_model("runs/demo")
    save("runs/demo", run, model, 10)
    Path("runs/notes").mkdir()
    for wrong in ("runs/demmo", "demo", "runs/demo/"):
        if wrong == "runs/demo/":
            read_model(wrong)
        else:
            with pytest.raises(LimnerError, match=r"Did you mean runs/demo\?"):
                read_model(wrong)
    with pytest.raises(LimnerError, match=r"There are runs/demo\.$"):
        read_model("zzzzzz")


def test_files_of_other_formats(file, monkeypatch, run):
    """Settings and weights are renamed format by format, in model files and in config.json."""

    def rename(run, spec):
        assert spec["height"] == 8
        return {**run, "seed": run["seed"] + 1}

    step = config.Migration(rename, lambda family, name: name.replace("generator", family))
    now = config.FORMAT
    monkeypatch.setattr(config, "FORMAT", now + 2)
    monkeypatch.setattr(config, "MIGRATIONS", {now: step, now + 1: step})
    header, tensors = read_model(file)
    assert header["run"]["seed"] == run.seed + 2 and header["format"] == now + 2
    assert "toy.0.weight" in tensors and "generator.0.weight" not in tensors
    monkeypatch.setattr(config, "FORMAT", now - 1)
    with pytest.raises(LimnerError, match=rf"newer Limner \(format {now}") as error:
        read_model(file)
    assert not isinstance(error.value, Damaged)


def test_a_setting_that_no_migration_knows(file, model, run, tmp_path):
    header, tensors = read_model(file)
    header["run"]["model"]["colour"] = "blue"
    write_model(tmp_path / "odd.safetensors", tensors, header)
    with pytest.raises(LimnerError, match=r"odd\.safetensors: model\.colour is not a setting"):
        checkpoint.load(tmp_path / "odd.safetensors")


def test_weights_that_do_not_fit_are_listed(model):
    """Fault 18."""
    tensors = dict(model.state_dict())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    wrong = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    del wrong["discriminator.bias"]
    wrong["extra.weight"] = torch.zeros(2)
    wrong["generator.0.weight"] = torch.zeros(4, 3, 5, 5)
    with pytest.raises(LimnerError) as error:
        load_weights(model, wrong, "x.safetensors")
    message = str(error.value)
    assert "1 missing: discriminator.bias" in message and "1 unexpected: extra.weight" in message
    assert "generator.0.weight (4x3x5x5, not 4x3x3x3)" in message and "x.safetensors" in message
    same(before, dict(model.state_dict()))  # nothing was loaded by half
    load_weights(model, {name: tensor + 1 for name, tensor in before.items()})
    assert torch.equal(model.discriminator.bias, before["discriminator.bias"] + 1)


# ---- a run's folder


def test_save_and_resume(tmp_path, run, model):
    assert checkpoint.resume(tmp_path) is None and not checkpoint.exists(tmp_path)
    for seen in (0, 100, 200, 300):
        assert save(tmp_path, run, model, seen, loss=0.1 + 0.2, nothing=None).name == f"{seen:09d}"
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["000000200", "000000300"] and checkpoint.exists(tmp_path)
    resumed = checkpoint.resume(tmp_path)
    assert check(resumed, model) == 300 and resumed.state == {"seen": 300, "loss": 0.1 + 0.2, "nothing": None}
    assert read_model(tmp_path)[0]["seen"] == 300
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "model.safetensors"]


def test_saving_again_at_the_same_place(tmp_path, run, model):
    save(tmp_path, run, model, 100)
    save(tmp_path, run, model, 200, again=False)
    save(tmp_path, run, model, 200, again=True)
    assert checkpoint.resume(tmp_path).state == {"seen": 200, "again": True}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_keep_one(tmp_path, run, model):
    for seen in (1, 2, 3):
        save(tmp_path, run, model, seen, keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000000003"]


@pytest.mark.parametrize("name", ["model.safetensors", "live.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_newest_falls_back(tmp_path, run, model, name, harm):
    """Fault 5."""
    save(tmp_path, run, model, 100)
    victim = save(tmp_path, run, model, 200) / name
    size = victim.stat().st_size
    if harm == "flip":
        flip(victim, size // 2)
    elif harm == "cut":
        os.truncate(victim, size // 3)
    else:
        victim.unlink()
    with pytest.warns(UserWarning, match=rf"{name} is damaged.*Using .*000000100"):
        assert check(checkpoint.resume(tmp_path), model) == 100
    # Training goes on from there; the damaged one is not kept in the place of a good one.
    save(tmp_path, run, model, 150)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000000100", "000000150"]
    assert check(checkpoint.resume(tmp_path), model) == 150


def test_no_whole_checkpoint_is_no_fresh_start(tmp_path, run, model):
    for seen in (1, 2):
        (save(tmp_path, run, model, seen) / "state.json").write_text("{}")
    with pytest.warns(UserWarning), pytest.raises(LimnerError, match=r"No checkpoint of .* is intact"):
        checkpoint.resume(tmp_path)


def test_a_damaged_model_file_falls_back(tmp_path, run, model):
    save(tmp_path, run, model, 100)
    save(tmp_path, run, model, 200)
    flip(tmp_path / "model.safetensors", 1000)  # the newest checkpoint's too: they are one file
    with pytest.warns(UserWarning, match="is damaged.*Reading"):
        assert read_model(tmp_path)[0]["seen"] == 100
    (tmp_path / "model.safetensors").unlink()
    no_file, damaged = r"has no model.safetensors", r"000000200.* is damaged"
    with pytest.warns(UserWarning, match=no_file), pytest.warns(UserWarning, match=damaged):
        assert checkpoint.load(tmp_path).path.parent.name == "000000100"


def test_without_hard_links(tmp_path, run, model, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    save(tmp_path, run, model, 100)
    assert read_model(tmp_path / "model.safetensors")[0]["seen"] == 100


@pytest.mark.parametrize(
    "call", ["tensors.save_file", "saving._write_state", "saving._publish", "saving.sync", "tensors.sync"]
)
def test_a_full_disk(tmp_path, run, model, monkeypatch, call):
    """Fault 4: the one before is untouched, nothing is left behind, the error names the bytes."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, run, model, 100)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(f"limner.checkpoint.{call}", full)
        with pytest.raises(LimnerError, match=r"No space left on device.* needs [\d,]+ bytes"):
            save(tmp_path, run, model, 200)
    assert all(p.read_bytes() == content for p, content in before.items())
    assert not list(tmp_path.rglob(".*"))
    assert check(checkpoint.resume(tmp_path), model) in ((200,) if call == "saving._publish" else (100,))
    save(tmp_path, run, model, 300)
    assert check(checkpoint.resume(tmp_path), model) == 300


def test_a_disk_that_fills_as_the_state_is_written(tmp_path, run, model, monkeypatch):
    """Files that are written by a temporary name name the bytes too."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LimnerError, match=r"No space left on device.* needs [\d,]+ bytes"):
        save(tmp_path, run, model, 100)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_disk_that_is_full_beforehand(tmp_path, run, model, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1234))
    with pytest.raises(LimnerError, match=r"needs [\d,]+ bytes and the disk has 1,234 free"):
        save(tmp_path, run, model, 100)
    assert not list((tmp_path / "checkpoints").iterdir())


def in_child(work):
    """Run ``work`` in a forked process and return its exit code; -9 if it was killed."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(30)
    return child.exitcode


def test_a_disk_that_fills_up_for_real(tmp_path, run, model):
    """The operating system refuses a file over a limit, in the middle of writing it."""
    model.discriminator = nn.Linear(1000, 100)
    save(tmp_path, run, model, 100)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with (
            contextlib.redirect_stderr(io.StringIO()),
            pytest.raises(LimnerError, match=r"needs [\d,]+ bytes"),
        ):
            save(tmp_path, run, model, 200)
        os._exit(7)

    assert in_child(work) == 7
    assert check(checkpoint.resume(tmp_path), model) == 100
    assert not list(tmp_path.rglob(".tmp*"))


def test_killed_at_every_call_of_a_save(tmp_path, run, model):
    """Fault 1, one point after another: a process that dies before its n-th change to the disk."""
    calls = ["fsync", "rename", "replace", "link", "unlink", "rmdir", "mkdir", "open"]
    ended = []
    for seen in (100, 200):
        save(tmp_path / "before", run, model, seen)
    for n in itertools.count():
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(n))

        def work(folder=folder, n=n):
            left = n

            def deadly(call):
                def wrapped(*args, **kwargs):
                    nonlocal left
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                    return call(*args, **kwargs)

                return wrapped

            for name in calls:
                setattr(os, name, deadly(getattr(os, name)))
            tensor_files.save_file = deadly(tensor_files.save_file)
            save(folder, run, model, 300)
            os._exit(0)

        code = in_child(work)
        ended.append(check(checkpoint.resume(folder), model))
        assert read_model(folder)[0]["seen"] in (200, 300)
        save(folder, run, model, 400)
        assert len(list((folder / "checkpoints").iterdir())) == 2 and not list(folder.rglob(".*"))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert len(ended) > 15 and ended == sorted(ended) and set(ended) == {200, 300}


def test_killed_at_random(tmp_path, run, model):
    """Fault 1: whatever was reported as saved is there afterwards, and whole."""
    model.discriminator = nn.Linear(500, 500)
    rng = random.Random(0)
    seen = 0
    for _ in range(12):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            for step in itertools.count(seen + 1):
                save(tmp_path, run, model, step)
                os.write(writer, struct.pack("<q", step))
        os.close(writer)
        os.read(reader, 8)
        time.sleep(rng.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        received = os.read(reader, 8 * 10_000)
        os.close(reader)
        acknowledged = struct.unpack("<q", received[-8:])[0] if received else seen + 1
        seen = check(checkpoint.resume(tmp_path), model)
        assert seen >= acknowledged
        assert read_model(tmp_path)[0]["seen"] in (seen, seen - 1)


def test_two_runs_on_one_folder(tmp_path):
    """Fault 7."""
    folder = tmp_path / "x"
    mine = rf"in use by process {os.getpid()} on .* since \d{{4}}-"
    with checkpoint.lock(folder), pytest.raises(LimnerError, match=mine), checkpoint.lock(folder):
        pass
    with checkpoint.lock(folder):  # free again
        pass

    def work():
        with checkpoint.lock(folder):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    with checkpoint.lock(folder):  # the dead hold nothing
        pass
    (tmp_path / "file").touch()
    with pytest.raises(LimnerError, match="choose another --out"), checkpoint.lock(tmp_path / "file"):
        pass


# ---- optimisers


def train(net, optimiser, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        image = torch.randn(4, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad()
        net(image).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {"betas": (0.0, 0.99)}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.RMSprop, {"centered": True}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimiser_goes_on_as_if_never_stopped(tmp_path, run, kind, options, dtype):
    def fresh():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(
            memory_format=torch.channels_last
        )
        groups = [{"params": list(net[0].parameters())}, {"params": list(net[2].parameters()), "lr": 1e-4}]
        return net, kind(groups, lr=1e-3, **options)

    net, optimiser = fresh()
    train(net, optimiser, 3, seed=1)
    if dtype is torch.bfloat16:  # state in another precision than the weights
        for state in optimiser.state.values():
            state.update({k: v.to(dtype) for k, v in state.items() if torch.is_tensor(v) and v.dim()})
    tensors, packed = pack_state(optimiser.state_dict(), "optimiser/net")
    assert all(name.startswith("optimiser/net.") for name in tensors)
    live = {**{f"model/{name}": tensor for name, tensor in net.state_dict().items()}, **tensors}
    checkpoint.save(tmp_path, net.state_dict(), make_header(run, SPEC, 12), live, {"optimiser": packed})

    resumed = checkpoint.resume(tmp_path)
    state = unpack_state(resumed.live_tensors, resumed.state["optimiser"])
    same(optimiser.state_dict(), state)
    net2, optimiser2 = fresh()
    load_weights(net2, {name: resumed.live_tensors[f"model/{name}"] for name in net2.state_dict()})
    optimiser2.load_state_dict(state)
    train(net2, optimiser2, 3, seed=2)
    optimiser.load_state_dict(optimiser.state_dict())  # torch casts state to the weights' precision here
    train(net, optimiser, 3, seed=2)
    same(dict(net.state_dict()), dict(net2.state_dict()))
    same(optimiser.state_dict(), optimiser2.state_dict())


def test_what_a_checkpoint_cannot_hold_is_refused():
    with pytest.raises(TypeError, match=r"x\.a is a set"):
        pack_state({"a": {1}}, "x")


def test_plain_values_keep_their_types():
    state = {0: (1, 2.5, None, True, "text", [torch.ones(2), {}]), "inf": float("inf"), None: [], True: ()}
    tensors, packed = pack_state(state, "x")
    same(unpack_state(tensors, json.loads(json.dumps(packed))), state)
