"""Folders of drawn images with metadata.jsonl, which `limner train` reads: written at once, or bit by bit.

One that grows bit by bit holds::

    DIR/000000.png ...     the images, each named by its seed
    DIR/metadata.jsonl     a line for each: file_name, seed, label and text as far as they were asked for
    DIR/provenance.json    run, settings, versions, and how many images each filter refused
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from limner import files
from limner.core import Condition, ImageSpec, LimnerError
from limner.pictures.grid import save_png


def save(images: Tensor, folder: Path, seeds: Sequence[int], condition: Condition, spec: ImageSpec) -> None:
    """One PNG an image, with metadata.jsonl in the form that ``train`` reads; an earlier call's images go."""
    for name in saved(folder):
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        name = f"{seed:06d}.png"
        save_png(image, folder / name, spec.bits)
        lines.append(metadata_line(name, seed, condition, i, spec))
    files.write_text(folder / "metadata.jsonl", "".join(lines))


def saved(folder: Path) -> set[str]:
    """The images that an earlier ``save`` left there. Raises LimnerError where anything else lies: it is a person's."""
    listed: set[str] = set()
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]
        named = {row["file_name"]: f"{row['seed']:06d}.png" for row in rows}
        listed = {name for name, ours in named.items() if name == ours}
    files.refuse_other_files(folder, "--to", listed | {"metadata.jsonl"} if listed else ())
    return {name for name in listed if (folder / name).exists()}


def metadata_line(name: str, seed: int, condition: Condition, i: int, spec: ImageSpec) -> str:
    """A line of metadata.jsonl: image ``i`` of the condition, in the file ``name``."""
    line: dict[str, Any] = {"file_name": name, "seed": seed}
    if condition.text is not None:
        line["text"] = condition.text[i]
    if condition.label is not None:
        line["label"] = spec.classes[int(condition.label[i])]
    return json.dumps(line, ensure_ascii=False) + "\n"


def begin(to: Path, provenance: dict[str, Any]) -> set[int]:
    """The seeds that the folder holds; ``provenance`` takes over how far it came.

    Raises LimnerError for a folder that holds anything else.
    """
    about = to / "provenance.json"
    if not about.exists():
        files.refuse_other_files(to, "--to")
        files.write_json(about, provenance)
        return set()
    old = _read(about)
    now, then = provenance["settings"], old["settings"]
    if now != then:
        differ = ", ".join(sorted(name for name in now if now[name] != then.get(name)))
        raise LimnerError(
            f"{to} holds images made with other settings ({differ}): name another folder with --to."
        )
    for name in ("drawn", "kept", "refused"):
        provenance[name] = old[name]
    seed, end = now["seed"], now["seed"] + old["drawn"]
    listed = to / "metadata.jsonl"
    lines = listed.read_text("utf-8").splitlines(keepends=True) if listed.exists() else []
    whole: list[str] = []
    kept: set[int] = set()
    for line in lines:  # what was listed last may be cut short, or the count not be written yet: drawn again
        with contextlib.suppress(ValueError, KeyError):
            row = json.loads(line)
            if line.endswith("\n") and seed <= row["seed"] < end:
                if not (to / row["file_name"]).exists():
                    raise LimnerError(
                        f"{row['file_name']} is listed in {listed} but is not there: put it back, or name "
                        f"another folder with --to."
                    )
                whole.append(line)
                kept.add(row["seed"])
    if len(kept) != old["kept"]:
        raise LimnerError(
            f"{listed} lists {len(kept)} images where {old['kept']} were made: put its lines back, or name "
            f"another folder with --to."
        )
    if whole != lines:
        files.write_text(listed, "".join(whole))
    for path in to.iterdir():  # images that were never listed
        found = re.fullmatch(r"\.?(-?\d{5,})\.png", path.name)
        if found and int(found[1]) not in kept:
            path.unlink()
    return kept


def _read(about: Path) -> dict[str, Any]:
    try:
        old = json.loads(about.read_text("utf-8"))
        if old["made_by"] == "limner synthesize" and isinstance(old["settings"], dict):
            return old
    except (ValueError, KeyError, TypeError):
        pass
    raise LimnerError(f"{about} is not what limner synthesize writes: name another folder with --to.")


def add(
    to: Path, provenance: dict[str, Any], images: Tensor, chosen: Sequence[int], seeds: Sequence[int],
    condition: Condition, spec: ImageSpec,
) -> None:  # fmt: skip
    """Put the chosen images of a batch into the folder: the files first, then their lines, then the count.

    Files bear hidden names, which nobody reads, until their lines are about to be written.
    """
    lines, names = [], [f"{seeds[i]:06d}.png" for i in chosen]
    for i, name in zip(chosen, names, strict=True):
        with open(to / f".{name}", "wb") as file:
            save_png(images[i], file, spec.bits)
            file.flush()
            os.fsync(file.fileno())
        lines.append(metadata_line(name, seeds[i], condition, i, spec))
    with unbroken():
        for name in names:
            os.replace(to / f".{name}", to / name)
        with open(to / "metadata.jsonl", "a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        files.write_json(to / "provenance.json", provenance)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until this is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in caught:
            signal.raise_signal(late)
