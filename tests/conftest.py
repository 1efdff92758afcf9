"""What several test files use: a private cache, small folders of images, the real command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from limner import families
from limner.core import Model
from tests.helpers import paint

# How long an example takes says nothing on a machine that is busy with other things.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# A parent such as nohup may have had it ignored, and commands inherit that: then no closed terminal could be tested.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as of a shell's background process
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str = "main") -> None:
    """Packed data goes to a folder of this session's own."""
    os.environ["LIMNER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Trainings whose ends are compared bit for bit use one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def limner() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command in a real process: limner("train", ..., ok=True)."""

    def run(*arguments: object, ok: bool = True, cwd: Path | None = None, **environment: str):
        command = [sys.executable, "-m", "limner.cli", *map(str, arguments)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **environment}
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables, timeout=300)
        if ok:
            assert done.returncode == 0, done.stderr[-3000:]
        else:
            assert "Traceback" not in done.stderr, done.stderr[-3000:]
        return done

    return run


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[Model]:
    """The family in ``tests/toy``, found by its file name like any other."""
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(Path(__file__).parent / "toy")])
    return families.load("toy")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty RGB pictures of 16 x 16."""
    return paint(tmp_path / "images", 40)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever runs the real command is marked process, the contract of families contract; the longest come first.

    So that no worker is left with a test of minutes while the others have nothing to do.
    """
    for item in items:
        if "limner" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.process)
        if item.path.name == "test_contract.py":
            item.add_marker(pytest.mark.contract)
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))  # none: who runs these is there
    items.sort(key=lambda item: (item.path.name != "test_readme.py", not item.get_closest_marker("process")))
