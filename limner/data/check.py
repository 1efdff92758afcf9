"""What a source holds, its problems, and how to solve them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from limner.data import decode
from limner.data.cache import cache_folder
from limner.data.find import find
from limner.data.open import Sources, named, partners_of
from limner.data.pack import DEFAULTS, common_size
from limner.data.parallel import attempt_each
from limner.data.sources import Item, Problem, printable
from limner.progress import bar
from limner.settings import DataOptions

_FEW_IMAGES = 100
_SHOWN = 10  # lines of each list in the printed report


@dataclass(frozen=True)
class Report:
    """What `check` found. Counts are of images that can be used."""

    sources: list[str]
    images: int
    formats: dict[str, int]
    modes: dict[str, int]  # Pillow's: L grey, P palette, RGBA with alpha, I;16 16-bit grey
    sizes: dict[str, int]  # 'height x width'
    bits: dict[str, int]
    animated: int
    classes: dict[str, int]
    captions: int
    duplicates: list[list[str]]  # groups of files with the same content
    problems: list[Problem]
    others: int  # files that are not images, ignored
    notes: list[str]  # sentences on how the sources were read
    advice: list[str]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.images:,} images in {', '.join(self.sources)}"]
        counted = ("formats", "modes", "sizes", "bits", "classes")
        shown = {name: _counts(getattr(self, name)) for name in counted}
        shown |= {"captions": f"{self.captions:,}", "animated": f"{self.animated:,}"}
        shown["others"] = f"{self.others:,} files that are not images"
        lines += [f"  {name:<9} {text}" for name, text in shown.items() if getattr(self, name)]
        lines += _listed("problems", [f"{p.path!r}: {p.reason}" for p in self.problems])
        same = [" = ".join(map(repr, group[:4])) for group in self.duplicates]
        lines += _listed("groups of files with the same content", same)
        return "\n".join(lines + [f"- {sentence}" for sentence in (*self.notes, *self.advice)])


def _counts(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:_SHOWN])
    return shown + (f", and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else "")


def _listed(title: str, entries: Sequence[str]) -> list[str]:
    """How many entries there are, and the first of them; no line if there are none."""
    more = [f"  and {len(entries) - _SHOWN:,} more (--json lists all)"] if len(entries) > _SHOWN else []
    return [f"{len(entries):,} {title}", *(f"  {e}" for e in entries[:_SHOWN]), *more] if entries else []


def check(sources: Sources, options: DataOptions = DEFAULTS, progress: bool = True) -> Report:
    """Reads and decodes everything, and keeps nothing. Raises LimnerError for a source that does not exist."""
    texts = named(sources)
    problems: list[Problem] = []
    images: list[tuple[Item, tuple[decode.Header, str]]] = []
    files: list[tuple[Item, tuple[decode.Header, str]]] = []  # those of the images that are not drawn
    notes: list[str] = []
    others = unreadable = 0
    for source in [find(text, cache_folder(options)) for text in texts]:
        listing = source.listing()
        with bar(f"checking {printable(source.name)}", not progress) as watch:
            readable, bad = attempt_each(partial(_look, options.fit), listing.items, watch)
        images += readable
        files += [] if source.drawn else readable
        problems += listing.skipped + bad
        others += listing.others
        notes += listing.notes
        unreadable += len(bad)

    if options.pairs:
        partners = find(options.pairs, cache_folder(options)).listing().items
        names = [item.name for item, _ in images], [item.name for item in partners]
        problems += partners_of(*names, options.pairs)[2]
    same: dict[str, list[str]] = {}
    for item, (_, content) in files:
        same.setdefault(content, []).append(item.name)
    headers = [header for _, (header, _) in images]
    report = Report(
        sources=texts,
        images=len(images),
        formats=_count(h.format or "drawn" for h in headers),
        modes=_count(h.mode for h in headers),
        sizes=_count(f"{h.height}x{h.width}" for h in headers),
        bits=_count(str(h.bits) for h in headers),
        animated=sum(h.frames > 1 for h in headers),
        classes=_count(item.label for item, _ in images if item.label is not None),
        captions=sum(bool(item.caption) for item, _ in images),
        duplicates=[names for names in same.values() if len(names) > 1],
        problems=problems,
        others=others,
        notes=notes,
        advice=[],
    )
    advice = list(_advice(report, unreadable, [header for _, (header, _) in files], options))
    return dataclasses.replace(report, advice=advice or ["No problems found."])


def _look(fit: str, item: Item) -> tuple[decode.Header, str]:
    """The header of an image that can be decoded, and a hash of its content."""
    with item.image(64, 64) as source:
        data = source.tobytes() if isinstance(source, Image.Image) else source.read()
    with item.image(64, 64) as source:
        header = decode.read_header(source)
    with item.image(64, 64) as source:
        decode.decode(source, 64, 64, fit)
    return header, hashlib.blake2b(data, digest_size=16).hexdigest()


def _count(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _advice(
    report: Report, unreadable: int, headers: Sequence[decode.Header], options: DataOptions
) -> Iterator[str]:
    """What to do, in sentences; ``unreadable`` of the problems are images."""
    n, bad = report.images, len(report.problems)
    if n == 0:
        yield "There are no usable images: choose a folder with PNG, JPEG, WebP or other images."
        return
    if bad:
        yield f"Fix or remove the {bad:,} files listed as problems; training skips them."
    if unreadable > options.max_bad * (n + unreadable):
        yield f"They are more than --data.max-bad ({options.max_bad:g}) of all files: training would stop."
    if n < _FEW_IMAGES:
        yield f"{n} images are few: a model will copy them more than it varies them; add more, or --data.flip."
    if report.duplicates:
        extra = sum(len(group) - 1 for group in report.duplicates)
        yield f"Remove {extra:,} duplicates: they are overweighted in training and bias held-out measures."
    if 0 < (small := sum(min(h.height, h.width) < 32 for h in headers)) < n:
        yield f"{small:,} images have fewer than 32 pixels a side and would be enlarged and blurred."
    if thin := sum(max(h.height, h.width) > 3 * min(h.height, h.width) for h in headers):
        yield f"{thin:,} images are over three times longer than wide; --data.fit pad keeps their ends."
    if 0 < (grey := sum(h.channels == 1 for h in headers)) < n:
        yield f"{grey:,} of {n:,} images are grey, the others coloured; --data.channels 1 makes all grey."
    if 0 < (clear := sum(h.channels == 4 for h in headers)) < n:
        yield (
            f"{clear:,} of {n:,} images may be transparent; --data.channels 3 lays them over --data.background."
        )
    if headers and common_size(headers) is None:
        yield "Training resizes them to 32x32: choose another size with --size, such as --size 64."
    if 0 < (labelled := sum(report.classes.values())) < n and options.labels:
        yield (
            f"{n - labelled:,} of {n:,} images have no class, so classes are left out: sort them into folders too."
        )
    if len(report.classes) > 1 and (rare := [name for name, count in report.classes.items() if count < 10]):
        yield f"{len(rare):,} classes have fewer than 10 images, such as {rare[0]!r}: add some or merge."
    if 0 < report.captions < n and options.captions:
        yield f"{n - report.captions:,} of {n:,} images have no caption: theirs is empty."
