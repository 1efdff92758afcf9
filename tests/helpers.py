"""What several test files use: small folders of images, and numbers that public code gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


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


GOLDENS = json.loads((Path(__file__).parent / "goldens.json").read_text())


def golden(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs, expected) that a public implementation gave in float64; lists of numbers are tensors."""

    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tensors(entry) for key, entry in value.items()}
        return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value

    return tensors(GOLDENS[name]["inputs"]), tensors(GOLDENS[name]["expected"])
