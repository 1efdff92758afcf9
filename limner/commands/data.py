"""The commands `limner data check` and `limner data show`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from limner import config
from limner.commands import MISTAKE, say
from limner.settings import DataOptions, LimnerError, nearest


@dataclasses.dataclass(frozen=True)
class _Check:
    """Say what is in a source, what is wrong with it, and how to mend it."""

    sources: tyro.conf.Positional[tuple[str, ...]]  # folders, archives, parquet files, shapes, digits, emoji
    json: bool = False  # for programs to read
    data: DataOptions = dataclasses.field(default_factory=DataOptions)


@dataclasses.dataclass(frozen=True)
class _Look:
    """Draw a sheet of a source's images with their labels or captions."""

    sources: tyro.conf.Positional[tuple[str, ...]]  # folders, archives, parquet files, shapes, digits, emoji
    to: str = "data.png"  # picture to write
    n: int = 64  # images on the sheet
    size: str = ""  # 32, or HEIGHTxWIDTH as 64x48; default: as the data has it
    seed: int = 0  # which images
    data: DataOptions = dataclasses.field(default_factory=DataOptions)


def data(argv: Sequence[str]) -> int:
    commands: dict[str, Callable[[Sequence[str]], int]] = {"check": _data_check, "show": _data_show}
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: limner data check SOURCE... | limner data show SOURCE --to PNG\n")
        print("  check   what is in a source, what is wrong with it, how to mend it; --json too")
        print("  show    a sheet of its images with labels or captions")
        return 0 if argv else MISTAKE
    if argv[0] not in commands:
        raise LimnerError(f"There is no command `limner data {argv[0]}`.{nearest(argv[0], commands)}")
    return commands[argv[0]](argv[1:])


def _data_check(argv: Sequence[str]) -> int:
    given = tyro.cli(_Check, prog="limner data check", args=list(argv))
    from limner.data import check

    report = check(given.sources, given.data)
    print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2) if given.json else str(report))
    return 0


def _data_show(argv: Sequence[str]) -> int:
    given = tyro.cli(_Look, prog="limner data show", args=list(argv))
    from limner.data import open_data
    from limner.pictures.grid import grid

    size = config.parse_size(given.size) if given.size else None
    found = open_data(given.sources, size=size, options=given.data)
    rows = found.order(0, min(given.n, len(found)), given.seed)
    captions = None
    if found.captions is not None:
        captions = [found.captions[i] for i in rows]
    elif found.labels is not None:
        captions = [found.spec.classes[found.labels[i]] for i in rows]
    Path(given.to).parent.mkdir(parents=True, exist_ok=True)
    grid(found.batch(rows).image, captions).save(given.to)
    say(f"{len(rows)} of {len(found):,} images in {given.to}")
    return 0
