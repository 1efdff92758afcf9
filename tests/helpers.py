"""What several test files use: small folders of images, a run of the toy family, numbers that public code gave."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from limner.config import Run
from limner.settings import DataOptions, Optimiser, Training


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


def animate(path: Path, frames: int, seed: int = 0, size: tuple[int, int] = (16, 16)) -> list[np.ndarray]:
    """An animated PNG of random pictures, (height, width) each, 8 a second; its frames, uint8 [H, W, 3] each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (frames, 4, 4, 3), dtype=np.uint8)
    first, *others = (Image.fromarray(c).resize(size[::-1], Image.Resampling.BICUBIC) for c in coarse)
    first.save(path, save_all=True, append_images=others, duration=125)
    return [np.asarray(frame) for frame in (first, *others)]


def toy_run(toy: Any, **changes: Any) -> Run:
    """A run of the toy family, with settings that differ from the defaults."""
    stage = sys.modules[toy.__module__].Stage(latent=7, rate=0.5)
    model = toy.Config(kind=3, rates=(1.0, 1e-300), stage=stage, maybe=stage, several={"a": stage})
    training = Training(optimisers={"generator": Optimiser(lr=0.1 + 0.2, betas=(0.0, 0.99))})
    run = Run(
        "toy", ("a folder", "shapes"), "tiny", (48, 64), "90s", 3, model, training, DataOptions(channels=4)
    )
    return dataclasses.replace(run, **changes)


GOLDENS = {
    name: entry
    for file in ("goldens.json", "text.goldens.json", "pictures.goldens.json")
    for name, entry in json.loads((Path(__file__).parent / file).read_text()).items()
}


def golden(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs, expected) in float64, of a public implementation or formula; lists of numbers are tensors."""

    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tensors(entry) for key, entry in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [tensors(entry) for entry in value]
        try:
            return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
        except (TypeError, ValueError):  # words, or lists of several lengths
            return value

    return tensors(GOLDENS[name]["inputs"]), tensors(GOLDENS[name]["expected"])


def train_beside(source: Path, family: str, budget: str) -> Path:
    """A run of the tiny preset beside its images, by its family's name."""
    import limner

    out = source.parent / family
    quiet = {"samples": 0, "precision": "float32"}
    limner.train(family, source, out, preset="tiny", budget=budget, quiet=True, training=quiet)
    return out
