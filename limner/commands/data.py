"""`limner data check` and `limner data show`: what is in a source."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from limner import files
from limner.commands import MISTAKE, print_result, say
from limner.commands.options import Sources, parse
from limner.config import parse_size
from limner.fields import Count, Seed
from limner.settings import DataOptions, LimnerError, nearest

HELP = """\
usage: limner data check SOURCE... | limner data show SOURCE... --to PNG

  check   what is in a source, what is wrong with it, and how to fix it; --json too
  show    a sheet of its images with labels or captions"""


@dataclass(frozen=True)
class CheckOptions:
    """Report what is in a source, what is wrong with it, and how to fix it."""

    sources: Sources  # folders, archives, parquet files or built-in sets
    json: bool = False  # print JSON
    data: DataOptions = field(default_factory=DataOptions)


@dataclass(frozen=True)
class ShowOptions:
    """Draw a sheet of a source's images with their labels or captions."""

    sources: Sources  # folders, archives, parquet files or built-in sets
    to: str = "data.png"  # picture to write
    n: Count = 64  # number of images
    size: str = ""  # of the images: 32, or HEIGHTxWIDTH as in 64x48. Default: as for limner train
    seed: Seed = 0  # chooses the images
    data: DataOptions = field(default_factory=DataOptions)


def run(argv: list[str]) -> int:
    commands = {"check": _check, "show": _show}
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0 if argv else MISTAKE
    if argv[0] not in commands:
        raise LimnerError(f"There is no command `limner data {argv[0]}`.{nearest(argv[0], commands)}")
    commands[argv[0]](argv[1:])
    return 0


def _check(argv: list[str]) -> None:
    given = parse(CheckOptions, argv, "data check")
    from limner.data import check

    report = check(given.sources, given.data)
    print_result(report.to_json(), given.json, str(report))


def _show(argv: list[str]) -> None:
    given = parse(ShowOptions, argv, "data show")
    from limner.data import open_data
    from limner.inference.pipeline import captions_of
    from limner.pictures.grid import SUFFIXES, in_rows, save_grid, save_picture

    to = Path(given.to)
    if to.suffix.lower() not in SUFFIXES:
        raise LimnerError(f"Cannot write {to}: name a .png for the sheet.")
    files.refuse_to_replace(to, given.sources)
    files.check_writable(to)
    size = parse_size(given.size) if given.size else None
    data = open_data(given.sources, size=size, options=given.data)
    rows = data.order(0, min(given.n, len(data)), given.seed)
    batch = data.batch(rows)
    if batch.condition.image is None:
        save_grid(to, batch.image, captions_of(data.spec, batch.condition))
    else:
        save_picture(
            in_rows([batch.condition.image, batch.image], "given, wanted" if data.paired else ""), to
        )
    say(f"{len(rows)} of {len(data):,} images in {to}; to follow: {data.follows or 'nothing'}")
    for note in data.split(given.data.holdout)[1].held_out_notes:
        say(note)
