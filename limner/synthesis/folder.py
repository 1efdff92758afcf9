"""Folders of drawn images with metadata.jsonl, which `limner train` reads: written at once, or batch by batch.

One that is written batch by batch holds::

    DIR/000000.png ...     the images, each named by its seed
    DIR/metadata.jsonl     a line for each: file_name, seed, and its label and text where it has them
    DIR/provenance.json    run, settings, versions, and how many images each filter refused
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from limner import files
from limner.core import Condition, ImageSpec, LimnerError
from limner.fields import JsonResult
from limner.pictures.grid import png, save_png


@dataclass(frozen=True)
class ImageBatch:
    """Images with all that their metadata says."""

    images: Tensor  # [N, C, H, W] in [-1, 1]
    seeds: Sequence[int]
    condition: Condition
    spec: ImageSpec

    def name(self, i: int) -> str:
        return f"{self.seeds[i]:06d}.png"

    @cached_property
    def labels(self) -> list[str] | None:
        """The class name of each image, if they have labels."""
        label = self.condition.label
        return None if label is None else [self.spec.classes[i] for i in label.tolist()]

    def metadata(self, i: int) -> str:
        """The line of image ``i`` in metadata.jsonl."""
        line: dict[str, Any] = {"file_name": self.name(i), "seed": self.seeds[i]}
        if self.condition.text is not None:
            line["text"] = self.condition.text[i]
        if self.labels is not None:
            line["label"] = self.labels[i]
        return json.dumps(line, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Provenance(JsonResult):
    """Where the images of a folder come from, and how far it is filled."""

    made_by: str = "limner synthesize"
    run: str
    family: str
    images_seen: int  # by the run in its training
    settings: dict[str, Any]  # all that decides which images the folder holds, as JSON
    versions: dict[str, str]
    drawn: int = 0  # seeds tried
    kept: int = 0  # images in the folder
    refused: dict[str, int]  # images that each filter left out


def save(folder: Path, batch: ImageBatch) -> None:
    """One PNG per image, with metadata.jsonl in the form that ``train`` reads; an earlier call's images are removed."""
    for name in saved(folder):
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(batch.images):
        save_png(image, folder / batch.name(i), batch.spec.bits)
    files.write_text(folder / "metadata.jsonl", "".join(map(batch.metadata, range(len(batch.images)))))


def saved(folder: Path) -> set[str]:
    """The images that an earlier ``save`` wrote. Raises LimnerError for a folder with any other file."""
    listed: set[str] = set()
    with contextlib.suppress(OSError, LimnerError, ValueError, TypeError, KeyError):
        listing = folder / "metadata.jsonl"
        rows = [files.parse_json(line, listing) for line in listing.read_text("utf-8").splitlines()]
        by_seed = {row["file_name"]: f"{row['seed']:06d}.png" for row in rows}
        listed = {name for name, own in by_seed.items() if name == own}
    files.refuse_other_files(folder, "--to", listed | {"metadata.jsonl"} if listed else ())
    return {name for name in listed if (folder / name).exists()}


def begin(to: Path, provenance: Provenance) -> tuple[Provenance, set[int]]:
    """Open a folder to fill: the provenance with how far it is filled, and the seeds of its images.

    Raises LimnerError for a folder that holds anything else.
    """
    about = to / "provenance.json"
    if not about.exists():
        files.refuse_other_files(to, "--to")
        files.write_json(about, provenance.to_json())
        return provenance, set()
    old: dict[str, Any] = {}
    with contextlib.suppress(files.Damaged):
        old = files.read_json(about)
    mine = old.get("made_by") == Provenance.made_by
    if not mine or not isinstance(old.get("settings"), dict):
        raise LimnerError(f"{about} was not written by limner synthesize: name another folder with --to.")
    settings = provenance.settings
    if differ := sorted(key for key in settings if settings[key] != old["settings"].get(key)):
        raise LimnerError(
            f"{to} holds images made with other settings ({', '.join(differ)}): name another folder with --to."
        )
    provenance = replace(provenance, drawn=old["drawn"], kept=old["kept"], refused=old["refused"])
    seed = settings["seed"]
    return provenance, _repair(to, range(seed, seed + provenance.drawn), provenance.kept)


def _repair(to: Path, seeds: range, count: int) -> set[int]:
    """Remove what an interrupted batch left, which is drawn again; the seeds of the ``count`` images that stay."""
    listed = to / "metadata.jsonl"
    lines = listed.read_text("utf-8").splitlines(keepends=True) if listed.exists() else []
    kept: dict[int, str] = {}  # seed -> line
    for line in lines:  # the last may be cut short, or not be counted yet
        with contextlib.suppress(files.Damaged, KeyError):
            row = files.parse_json(line, listed)
            if line.endswith("\n") and row["seed"] in seeds:
                if not (to / row["file_name"]).exists():
                    raise LimnerError(
                        f"{row['file_name']} is listed in {listed} but is missing: put it back, or name "
                        f"another folder with --to."
                    )
                kept[row["seed"]] = line
    if len(kept) != count:
        raise LimnerError(
            f"{listed} lists {len(kept)} images where {count} were made: put its lines back, or name "
            f"another folder with --to."
        )
    if list(kept.values()) != lines:
        files.write_text(listed, "".join(kept.values()))
    for path in to.iterdir():  # images that were never listed
        match = re.fullmatch(r"\.?(-?\d{5,})\.png", path.name)
        if match and int(match[1]) not in kept:
            path.unlink()
    return set(kept)


def add(to: Path, provenance: Provenance, batch: ImageBatch, chosen: Sequence[int]) -> None:
    """Put the chosen images of a batch into the folder: the files first, then their lines, then the count.

    Files have hidden names, which are never read, until their lines are about to be written.
    """
    for i in chosen:
        with open(to / f".{batch.name(i)}", "wb") as file:
            file.write(png(batch.images[i], batch.spec.bits))
            file.flush()
            os.fsync(file.fileno())
    with files.uninterrupted():
        for i in chosen:
            os.replace(to / f".{batch.name(i)}", to / batch.name(i))
        with open(to / "metadata.jsonl", "a", encoding="utf-8") as file:
            file.write("".join(batch.metadata(i) for i in chosen))
            file.flush()
            os.fsync(file.fileno())
        files.write_json(to / "provenance.json", provenance.to_json())
