"""What several test files use: a private cache, small folders of images, the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str = "main") -> None:
    """Packed data goes to a folder of this session's own."""
    os.environ["LIMNER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


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


def paint(
    folder: Path, count: int, size: tuple[int, int] = (16, 16), mode: str = "RGB", seed: int = 0
) -> Path:
    """A folder of ``count`` small random pictures, (height, width) each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    for i in range(count):
        coarse = rng.integers(0, 256, (4, 4, *channels), dtype=np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty RGB pictures of 16 x 16."""
    return paint(tmp_path / "images", 40)


GOLDENS = json.loads((Path(__file__).parent / "goldens.json").read_text())


def golden(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs, expected) that a public implementation gave in float64; lists of numbers are tensors."""

    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tensors(entry) for key, entry in value.items()}
        return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value

    return tensors(GOLDENS[name]["inputs"]), tensors(GOLDENS[name]["expected"])
