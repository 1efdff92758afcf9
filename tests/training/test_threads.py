"""The threads of a training: measured for a budget of time, kept for one of images."""

from pathlib import Path

import pytest
import torch

from limner import api, checkpoint
from limner.fields import LimnerError
from limner.inference import threads
from limner.inference.threads import Threads
from limner.training import run, session
from limner.training.journal import read_log


@pytest.fixture
def busy(monkeypatch):
    """Two processors, of which one is busy with other work; set ``value`` to False where that ends."""
    before, state = torch.get_num_threads(), {"value": True}
    fresh = Threads()
    monkeypatch.setattr(threads, "processors", lambda: 2)
    monkeypatch.setattr(threads, "trial", lambda count: float(1 / count if state["value"] else count))
    for module in (run, session):
        monkeypatch.setattr(module, "THREADS", fresh)
    torch.set_num_threads(2)
    yield state
    assert torch.get_num_threads() == 2  # set back behind every training
    torch.set_num_threads(before)


def train(images: Path, out: Path, **settings):
    training = {"samples": 0, "save_every": "32img", "batch": 16, **settings.pop("training", {})}
    return api.train("vae", images, out, preset="tiny", quiet=True, training=training, **settings)


def kept(out: Path) -> int:
    resumed = checkpoint.resume(out)
    assert resumed
    return resumed.state["threads"]


def test_a_budget_in_images_keeps_its_threads(images, tmp_path, busy):
    """Also when the other work has ended, and through a resume."""
    out = tmp_path / "run"
    train(images, out, budget="32img")
    assert kept(out) == 1
    busy["value"] = False
    train(images, out, budget="64img", resume=True)
    assert kept(out) == 1
    train(images, tmp_path / "another", budget="32img")
    assert kept(tmp_path / "another") == 2


def test_it_says_so(images, tmp_path, busy, capsys):
    training = {"samples": 0, "batch": 16}
    for number in (1, 2):
        out = tmp_path / str(number)
        api.train("vae", images, out, preset="tiny", budget="16img", training=training)
        plural = "s" * (number > 1)
        assert f"Uses {number} thread{plural} to its end, whatever else runs" in " ".join(
            capsys.readouterr().err.split()
        )
        busy["value"] = False
    torch.set_num_threads(1)
    api.train("vae", images, out, preset="tiny", budget="32img", training=training, resume=True)
    torch.set_num_threads(2)
    assert "Resumes with 1 thread instead of 2" in " ".join(capsys.readouterr().err.split())


def test_a_budget_of_time_follows_the_machine(images, tmp_path, busy, monkeypatch):
    monkeypatch.setattr(threads, "REST", 0.01)
    calls = 0

    def trial(count):
        nonlocal calls
        calls += 1
        return float(1 / count if calls <= 6 else count)  # the first measurement is of three trials each

    monkeypatch.setattr(threads, "trial", trial)
    train(images, tmp_path / "run", budget="1s")
    changes = [line["threads"] for line in read_log(tmp_path / "run") if "threads" in line]
    assert changes[:1] == [2]


def test_a_fixed_number(images, tmp_path, busy):
    train(images, tmp_path / "run", budget="16img", training={"threads": 2})
    assert kept(tmp_path / "run") == 2
    with pytest.raises(LimnerError, match=r"^--training\.threads 3 is more than the processors here, 2:"):
        train(images, tmp_path / "run", budget="32img", resume=True, training={"threads": 3})
