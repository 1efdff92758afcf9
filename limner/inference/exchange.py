"""Runs to and from the format of diffusers: a folder of safetensors and JSON.

diffusers itself is not needed. The families that convert are those that implement `core.Exchanges`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from limner import checkpoint, families, files
from limner.checkpoint.tensors import read_tensors
from limner.config import Run, write_run
from limner.core import DataOptions, Exchanges, LimnerError, Part
from limner.settings import join_words

WEIGHTS = "diffusion_pytorch_model.safetensors"
SETTINGS, SCHEDULER, PIPELINE = "config.json", "scheduler_config.json", "model_index.json"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")  # whose parts are those of DRAWING
DRAWING = ("unet", "scheduler")
VERSION = "0.35.0"  # of diffusers, whose format is written


def to_diffusers(run: str | Path, out: str | Path) -> list[Part]:
    """Write a run's averaged weights as a new folder ``out``; the parts that were written. Raises LimnerError."""
    loaded = checkpoint.load(run)
    if not isinstance(loaded.model, Exchanges):
        raise LimnerError(
            f"{loaded.run.family} has no counterpart in diffusers: use a run of "
            f"{join_words(families.supporting(Exchanges))}."
        )
    parts = loaded.model.to_diffusers()
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LimnerError(f"{out} exists already: name another folder with --out, or remove it.")
    with files.atomic_folder(out) as unfinished:
        for part in parts:
            folder = unfinished / part.folder
            folder.mkdir(exist_ok=True)
            settings = {**part.settings, "_diffusers_version": VERSION}
            if _file_of(part) == PIPELINE:
                settings |= {p.folder: ["diffusers", p.settings["_class_name"]] for p in parts if p.folder}
            (folder / _file_of(part)).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
            if part.weights:
                tensors = {name: value.cpu().contiguous().clone() for name, value in part.weights.items()}
                save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return parts


def from_diffusers(folder: str | Path, out: str | Path, size: tuple[int, int] | None = None) -> str:
    """Make a run in ``out`` from a folder that diffusers wrote; the family's name. Raises LimnerError.

    ``size`` (height, width) of the images overrides that of the folder.
    """
    folder, out = Path(folder), Path(out)
    if checkpoint.exists(out):
        raise LimnerError(f"{out} already holds a run: name another folder with --out.")
    files.refuse_other_files(out, "--out")
    parts = read(folder)
    for part in parts if size else ():
        if part.weights:
            part.settings["sample_size"] = size
    for name in families.supporting(Exchanges):
        family: Any = families.load(name)
        model = family.from_diffusers(parts)
        if model is not None:
            break
    else:
        kinds = sorted({str(part.settings["_class_name"]) for part in parts})
        raise LimnerError(
            f"No family reads {join_words(kinds, 'and')}: only networks of "
            f"{join_words(families.supporting(Exchanges))} can be imported."
        )
    preset = family.presets["base"]
    spec = model.spec
    run = Run(
        family=name, sources=(), preset="base", size=(spec.height, spec.width), budget="0img", seed=0,
        model=model.config, training=preset.training, data=DataOptions(channels=spec.channels),
    )  # fmt: skip
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob(WEIGHTS)))).hexdigest()
    header = checkpoint.make_header(run, spec, seen=0, parents={"diffusers": digest})
    with files.together():
        write_run(out, run)
        checkpoint.write_model(out / checkpoint.MODEL, model.state_dict(), header)
    return name


def read(folder: Path) -> list[Part]:
    """The parts in a folder: at its top, and in each folder in it that has settings; those of its pipeline, if any.

    Raises LimnerError, also for a pipeline of which a part would be lost.
    """
    if not folder.is_dir():
        raise LimnerError(f"There is no folder {folder}: name one that diffusers wrote.")
    parts = []
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    for path in (place / name for place in places for name in (SETTINGS, SCHEDULER)):
        if not path.is_file():
            continue
        settings = read_settings(path)
        if isinstance(settings.get("_class_name"), str):
            weights = read_weights(path.parent) if path.name == SETTINGS else {}
            parts.append(Part("" if path.parent == folder else path.parent.name, settings, weights))
    if (folder / PIPELINE).is_file():
        parts = _parts_of(read_settings(folder / PIPELINE), parts, folder)
    if not parts:
        raise LimnerError(f"{folder} was not written by diffusers: no {SETTINGS} in it names a _class_name.")
    for kind in ("Scheduler", ""):
        several = [
            part for part in parts if str(part.settings["_class_name"]).endswith("Scheduler") == bool(kind)
        ]
        if len(several) > 1:
            names = join_words([part.folder or "its top" for part in several], "and")
            raise LimnerError(
                f"{folder} holds more than one {kind.lower() or 'network'} ({names}): name a folder with one."
            )
    return parts


def _parts_of(pipeline: dict[str, Any], parts: list[Part], folder: Path) -> list[Part]:
    """Those that a pipeline names. Raises LimnerError for pipelines of other parts, and where one is missing."""
    kind = pipeline.get("_class_name")
    named = {name: value for name, value in pipeline.items() if isinstance(value, list) and any(value)}
    others = [name for name in named if name not in DRAWING]
    if kind not in PIPELINES or others:
        which = f", which draws with {join_words(others, 'and')} too" if others else ""
        vae = f", or its autoencoder alone: {folder / 'vae'}" if "vae" in others else ""
        raise LimnerError(f"{folder} holds a {kind}{which}: import a {join_words(PIPELINES)}{vae}.")
    chosen = []
    for name in DRAWING:
        kind = named.get(name, [None])[-1]
        # In a folder of its name, or at the top, as the first versions had it.
        found = [part for part in parts if part.folder in (name, "") and part.settings["_class_name"] == kind]
        if not found:
            raise LimnerError(f"{folder} lacks its {name} ({kind}): save the pipeline again.")
        chosen.append(found[-1])
    return chosen


def read_settings(path: Path) -> dict[str, Any]:
    """A table of settings. Raises LimnerError."""
    try:
        return files.read_json(path)
    except OSError as error:
        raise LimnerError(files.explain(error, path, "be read")) from None


def read_weights(folder: Path) -> dict[str, Any]:
    """The weights beside a settings file; empty where there are none, as for a tokenizer. Raises LimnerError."""
    path = folder / WEIGHTS
    if not path.is_file():
        others = sorted(folder.glob("diffusion_pytorch_model*"))
        if others:
            raise LimnerError(
                f"{folder} has {others[0].name} but no {WEIGHTS}: save it from diffusers with safe_serialization, "
                "unsharded and without a variant."
            )
        return {}
    try:
        return read_tensors(path).tensors
    except files.Damaged as error:
        raise LimnerError(f"{error} Copy it again.") from None


def _file_of(part: Part) -> str:
    name = str(part.settings["_class_name"])
    return PIPELINE if name.endswith("Pipeline") else SCHEDULER if name.endswith("Scheduler") else SETTINGS
