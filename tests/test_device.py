"""Which precision `auto` means where."""

import platform

import pytest
import torch

from limner import files
from limner.core import Condition, ImageSpec
from limner.device import keep_freed_memory, pick_device
from limner.families.flow import Flow
from limner.inference.pipeline import generate
from limner.inference.precision import choose_bf16, network_name
from limner.settings import LimnerError

CPU = torch.device("cpu")


class Timer:
    """A clock that ``run`` moves: so many seconds for a run in bf16, and so many for one in float32."""

    def __init__(self, bf16: float, float32: float, first: float = 0.0):
        self.seconds, self.first = {True: bf16, False: float32}, first
        self.now, self.runs = 0.0, list[bool]()

    def __call__(self) -> float:
        return self.now

    def run(self, in_bf16: bool) -> None:
        self.now += self.seconds[in_bf16] + (0 if in_bf16 in self.runs else self.first)
        self.runs.append(in_bf16)

    def choose(self, network: str = "a network", precision: str = "auto") -> bool:
        return choose_bf16(CPU, precision, network, self.run, self)


@pytest.fixture
def bf16(monkeypatch, tmp_path):
    """A processor with instructions for bf16, and an empty cache. Gives the file of what was measured."""
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    monkeypatch.setattr(
        torch.cpu,
        "get_capabilities",
        lambda: {"cpu_name": "Some", "amx_bf16": False, "avx512_bf16": True},
        raising=False,
    )
    return tmp_path / "precision.json"


@pytest.mark.parametrize(
    ("times", "chosen"), [((1, 2), True), ((1, 1.11), True), ((1, 1.05), False), ((2, 1), False)]
)
@pytest.mark.parametrize("unit", [1e-4, 0.1, 60.0])
def test_bf16_is_chosen_where_it_is_measured_as_a_tenth_faster(bf16, times, chosen, unit):
    timer = Timer(*(t * unit for t in times))
    assert timer.choose() == chosen
    assert len(timer.runs) <= (2 if unit == 60 else 18)
    assert set(timer.runs) == {True, False}


def test_the_first_run_does_not_count(bf16):
    """It makes what the others find."""
    assert Timer(0.01, 0.02, first=0.2).choose()
    timer = Timer(0.01, 0.02)
    timer.run(False)  # so float32 has been run before
    timer.first = 0.1
    assert timer.choose("another")


def test_other_work_beside_most_runs_does_not_mislead(bf16):
    timer = Timer(0.02, 0.04)
    slow = iter([0.2, 0.0] * 2 + [0.2, 0.1] + [0.0] * 20)  # seconds that other work adds, run by run

    def run(in_bf16: bool) -> None:
        timer.run(in_bf16)
        timer.now += next(slow)

    assert choose_bf16(CPU, "auto", "a network", run, timer)


def test_one_pair_beside_other_work_decides_for_large_networks_neither_now_nor_later(bf16):
    """Found by a training at half of its speed: one pair had been timed, and what it said was kept."""
    timer = Timer(0.4, 0.8, first=5)  # seconds: a large network, whose first pair says nothing
    slow = iter([6.0, 0.0, 1.0, 0.0] + [0.0] * 20)

    def run(in_bf16: bool) -> None:
        timer.run(in_bf16)
        timer.now += next(slow)

    assert choose_bf16(CPU, "auto", "a network", run, timer)
    assert not bf16.exists()  # the pairs disagree: the next process measures it again
    timer = Timer(0.8, 0.4)
    assert timer.choose() and not timer.runs  # this one does not change its mind


def test_what_was_measured_is_kept_by_network(bf16):
    assert Timer(1, 2).choose("one") and not Timer(2, 1).choose("two")
    later = Timer(2, 1)
    assert later.choose("one") and not later.runs
    assert not later.choose("two") and not later.runs


def test_what_was_measured_is_read_once_while_nobody_writes(bf16, monkeypatch):
    assert Timer(1, 2).choose()
    reads = []
    monkeypatch.setattr(
        "limner.files.read_json", lambda path, read=files.read_json: reads.append(path) or read(path)
    )
    assert all(Timer(2, 1).choose() for _ in range(3))
    assert len(reads) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"Some, torch": 1}', "\x00"])
def test_damaged_measurements_are_made_again(bf16, damage):
    assert Timer(1, 2).choose()
    bf16.write_text(damage)
    timer = Timer(1, 2)
    assert timer.choose() and timer.runs
    assert not (again := Timer(2, 1)).runs and again.choose()


def test_a_cache_that_cannot_be_written_to_is_no_error(bf16, monkeypatch):
    bf16.parent.joinpath("file").write_text("")
    monkeypatch.setenv("LIMNER_CACHE", str(bf16.parent / "file"))
    assert Timer(1, 2).choose()


def test_only_auto_is_measured(bf16, monkeypatch):
    timer = Timer(2, 1)
    assert timer.choose(precision="bf16") and not timer.choose(precision="float32")
    assert choose_bf16(torch.device("cuda"), "auto", "a network", timer.run, timer)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert not Timer(1, 2).choose()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # an older torch, which cannot say
    assert not Timer(1, 2).choose()
    assert not timer.runs


def test_another_batch_is_another_network():
    names = [network_name("flow", ("config",), batch, "draw") for batch in (1, 31, 32, 33)]
    assert names[1] == names[2] and len(set(names)) == 3
    assert network_name("flow", ("other",), 32, "draw") not in names


def test_the_precision_reaches_the_sampler():
    torch.manual_seed(0)
    model = Flow(Flow.presets["tiny"].model, ImageSpec(3, 16, 16)).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    exact, rough = (generate(model, Condition(2), [0, 1], precision=p) for p in ("float32", "bf16"))
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().mean() < 0.05


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
