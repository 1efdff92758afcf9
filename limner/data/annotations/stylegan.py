"""The labels in a dataset.json, as StyleGAN's tools write them beside folders of numbered images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from limner.data.annotations.metadata import one_line
from limner.data.items import Listing, Opener, Problem, plain, printable
from limner.files import Damaged, parse_json

_LONGEST = 2**28  # bytes


def with_dataset_json(listing: Listing, files: Mapping[str, Opener]) -> Listing:
    """The listing with the labels of a dataset.json among its files, for images without one of their own.

    It holds ``labels``: pairs of a name and a number, or names with their numbers, or null.
    """
    for name in sorted(name for name in files if PurePosixPath(name).name.lower() == "dataset.json"):
        try:
            with files[name]() as file:
                content = file.read(_LONGEST)
            table = parse_json(content, printable(name))
            labels = table.get("labels") if isinstance(table, dict) else None
        except Damaged as error:
            listing = _with(listing, name, str(error))
        except Exception as error:  # whatever a damaged archive raises
            listing = _with(listing, name, f"cannot be read ({error})")
        else:
            listing = _labelled(listing, name, labels)
    return listing


def _with(listing: Listing, name: str, problem: str) -> Listing:
    return replace(listing, unused=[*listing.unused, Problem(printable(name), problem)])


def _labelled(listing: Listing, file: str, labels: Any) -> Listing:
    """The listing with the labels that a file gives below its own folder."""
    pairs = list(labels.items()) if isinstance(labels, dict) else labels or []
    shown, folder = printable(file), PurePosixPath(file).parent
    if not isinstance(pairs, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        return _with(listing, file, "its labels are not pairs of a name and a class")
    if not pairs:
        return replace(listing, notes=[*listing.notes, f"{shown} holds no labels."])
    said = {printable(str(folder / str(name).replace("\\", "/"))): label for name, label in pairs}
    if any(isinstance(label, list) for label in said.values()):
        return _with(listing, file, "its labels are vectors, and a class is one number: they are not used")
    known = {name: plain(text) for name, label in said.items() if (text := one_line(label))}
    items = [replace(i, label=i.label or known.get(i.name)) for i in listing.items]
    here = {item.name for item in items}
    used, lost = len(known.keys() & here), [name for name in said if name not in here]
    notes = [f"Classes from {shown}: {used:,} of {len(items):,} images."]
    if lost:
        notes.append(f"{shown} names {len(lost):,} images that are not there, such as {lost[0]!r}.")
    return replace(listing, items=items, notes=listing.notes + notes)
