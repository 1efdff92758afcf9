"""Writes the frozen checkpoints: one small model a line, and what it draws, by the Limner that is installed.

    python tests/frozen/make.py FOLDER

Run by the Limner of format 1 (commit c9f8399), once. The files beside this one are never made again: a later
Limner must open them and draw the same bytes. Weights are random, so that every layer counts.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

import limner
from limner import checkpoint, families
from limner.config import Run, from_json, to_json
from limner.core import DataOptions, ImageSpec

sys.path.insert(0, str(Path(__file__).parent))
from outcome import outcome

CLASSES = ("cat", "dog", "owl")
TEXT = {"text_width": 8, "text_layers": 1, "text_length": 8}
BLOCKS = {
    "patch": 4,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "qk_norm": True,
    "rotary": True,
    "gated": True,
    "registers": 2,
}
PLAIN = {"patch": 4, "width": 16, "depth": 1, "heads": 2}
UNET = {"widths": [8, 16], "blocks": [1, 1], "attention": [1], "head": 8, "embedding": 16}
DISCRETE = {"width": 8, "multiples": [1, 2], "attention": [1], "head": 8}
CODEC = {
    "width": 4,
    "multiples": [1, 2],
    "hidden": 3,
    "latent": 3,
    "codes": 8,
    "discriminator_width": 4,
    "discriminator_layers": 1,
}
CODEC = {**CODEC, "adversarial_from": 0}

# name: (family, settings that differ from the tiny preset's, what the data has, sampling knobs)
MODELS = {
    "autoencoder": ("autoencoder", CODEC, {}, {}),
    "autoencoder-vq": ("autoencoder", {**CODEC, "kind": "vq"}, {}, {}),
    "biggan": ("biggan", {"generator_width": 2, "discriminator_width": 2}, {"label": True}, {"truncation": 0.7}),
    "biggan-deep": ("biggan", {"generator_width": 4, "discriminator_width": 4, "deep": True, "depth": 1}, {"label": True}, {}),
    "dcgan": ("dcgan", {}, {"label": True}, {}),
    "ddpm": ("ddpm", {**DISCRETE, "predict": "data"}, {"label": True}, {"steps": 4}),
    "ddpm-ddpm": ("ddpm", {**DISCRETE, "network": "ddpm", "learn_variance": True}, {}, {"steps": 4, "solver": "ancestral"}),
    "ddpm-adm": ("ddpm", {**DISCRETE, "network": "adm", "predict": "velocity"}, {"label": True}, {"steps": 4, "solver": "unipc", "guidance": 3.0}),
    "dino": ("dino", {"body": {"width": 16, "depth": 1, "heads": 2}, "hidden": 16, "bottleneck": 8, "prototypes": 8}, {}, {}),
    "dit-text": ("dit", {"body": BLOCKS, **TEXT}, {"text": True}, {"steps": 4, "guidance": 2.0}),
    "dit-label": ("dit", {"body": PLAIN, "predict": "noise"}, {"label": True}, {"steps": 4, "solver": "ancestral", "guide_from": 0.2, "guide_to": 0.9}),
    "dit-velocity": ("dit", {"body": PLAIN, "predict": "velocity", "condition": "none"}, {}, {"steps": 3, "solver": "heun"}),
    "drifting-label": ("drifting", {"latent": 8, "widths": [8, 16], "embedding": 16, "fine": 4, "head": 8, "features": [4, 8]}, {"label": True}, {"guidance": 1.5}),
    "drifting-text": ("drifting", {"network": "transformer", "body": PLAIN, "features": [4, 8], "styles": 4, "codes": 8, **TEXT}, {"text": True}, {}),
    "edm": ("edm", DISCRETE, {"label": True}, {"steps": 4, "churn": 10.0}),
    "edm-song": ("edm", {**DISCRETE, "network": "song"}, {"label": True}, {"steps": 4, "solver": "dpm3m"}),
    "flow-text": ("flow", {**UNET, "reading": [0], **TEXT}, {"text": True}, {"steps": 4, "guidance": 3.0}),
    "flow-label": ("flow", {**UNET, "reading": []}, {"label": True}, {"steps": 3, "solver": "euler", "shift": 1.5}),
    "latent": ("latent", {"codec": CODEC, "width": 8, "head": 8, **TEXT}, {"text": True}, {"steps": 4}),
    "latent-ldm": ("latent", {"codec": CODEC, "network": "ldm", "width": 8, "head": 8, "predict": "noise", **TEXT}, {"label": True}, {"steps": 4, "solver": "ddim", "eta": 0.5}),
    "latent-dit": ("latent", {"codec": {**CODEC, "kind": "vq"}, "network": "dit", "body": {**BLOCKS, "patch": 1}, "predict": "velocity"}, {"label": True}, {"steps": 4, "guided": 2}),
    "mae": ("mae", {"body": {"width": 16, "depth": 1, "heads": 2}}, {}, {}),
    "meanflow": ("meanflow", {**UNET, **TEXT}, {"text": True}, {"steps": 2}),
    "meanflow-dit": ("meanflow", {"network": "transformer", "body": BLOCKS, "guidance": 3.0}, {"label": True}, {"guidance": 2.0}),
    "progan": ("progan", {"maps": 64, "widest": 8}, {"label": True}, {"truncation": 0.8}),
    "r3gan": ("r3gan", {}, {"label": True}, {}),
    "stylegan2": ("stylegan2", {"channel_base": 32, "channel_max": 8, "latent": 8, "style": 8}, {"label": True}, {"truncation": 0.7}),
    "vae": ("vae", {}, {}, {}),
    "vit": ("vit", {"body": {"width": 16, "depth": 1, "heads": 2}}, {"label": True}, {}),
}  # fmt: skip


def change(settings, changes, where="model"):
    old = to_json(settings)
    return from_json(type(settings), {k: {**v, **changes[k]} if isinstance(changes.get(k), dict) else changes.get(k, v) for k, v in old.items()} | {k: v for k, v in changes.items() if k not in old}, where)  # fmt: skip


def stir(model: torch.nn.Module) -> None:
    """Every weight away from what it began as: many begin at 0, and would hide what comes before them."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            moved = p + 0.05 * torch.randn(p.shape, generator=generator)
            p.copy_((moved * 64).round() / 64)  # coarse numbers, which a zip makes small
    if hasattr(model, "rate"):
        model.rate.fill_(0.8)


def pack(place: Path) -> None:
    """A folder -> a zip of its name beside it."""
    with zipfile.ZipFile(
        place.with_name(f"{place.name}.zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=9
    ) as archive:
        for file in sorted(place.rglob("*")):
            if file.is_file() and file.suffix in (".json", ".safetensors", ".npz", ".jsonl"):
                archive.write(file, file.relative_to(place))
    shutil.rmtree(place)


# Whole runs, trained for two steps, to be resumed: (family, settings, budget)
RUNS = {
    "run-dcgan": ("dcgan", {"latent": 4, "width": 2, "widest": 4}, "16img"),
    "run-dit": ("dit", {"body": {**PLAIN, "width": 8}, "condition": "label"}, "32img"),
}


def train(folder: Path) -> None:
    for name, (family, changes, budget) in RUNS.items():
        model = change(families.load(family).presets["tiny"].model, changes)
        settings = {field: getattr(model, field) for field in changes}
        limner.train(
            family,
            "digits",
            folder / name,
            preset="tiny",
            budget=budget,
            size=16,
            quiet=True,
            model=settings,
            training={"samples": 0, "keep": 1, "precision": "float32"},
        )
        pack(folder / name)
        print(name, (folder / f"{name}.zip").stat().st_size)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    train(folder)
    for name, (family, changes, has, knobs) in MODELS.items():
        kind = families.load(family)
        preset = kind.presets["tiny"]
        classes = CLASSES if has.get("label") else ()
        spec = ImageSpec(3, 16, 16, classes=classes, captions=bool(has.get("text")))
        run = Run(
            family,
            ("pictures",),
            "tiny",
            (16, 16),
            "64img",
            0,
            change(preset.model, changes),
            preset.training,
            DataOptions(),
        )
        torch.manual_seed(0)
        model = families.build(family, run.model, spec)
        stir(model)
        model.eval()
        header = checkpoint.make_header(
            run, spec, 64, {"autoencoder": "0" * 64} if family == "latent" else {}
        )
        header |= {"seconds": 1.0, "data": "0" * 64}
        place = folder / name
        place.mkdir(parents=True)
        checkpoint.write_model(place / "model.safetensors", model.state_dict(), header)
        (place / "config.json").write_text(json.dumps(run.to_json()) + "\n")
        (place / "sampling.json").write_text(json.dumps(knobs) + "\n")
        loaded = checkpoint.load(place)
        found = outcome(loaded.model, knobs)
        np.savez_compressed(place / "outcome.npz", **found)
        pack(place)
        spread = {k: (v.shape, round(float(v.astype(float).std()), 3)) for k, v in found.items()}
        print(name, (folder / f"{name}.zip").stat().st_size, spread, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
