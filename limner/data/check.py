"""What a source holds, its problems, and how to solve them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

from PIL import Image

from limner.data import tiles
from limner.data.annotations.labels import Classes
from limner.data.clips.look import Films, look
from limner.data.clips.times import Cut, cut_of
from limner.data.clips.write import Taken
from limner.data.given import alike, partners_of, way_of
from limner.data.images import decode, formats
from limner.data.images.header import Header, colour_notes
from limner.data.items import NOTHING, Item, Problem, Source, of_few, printable, to_follow
from limner.data.open import Sources, named
from limner.data.pack import DEFAULTS
from limner.data.parallel import in_parallel
from limner.data.sizes import common_size, form_notes, size_notes
from limner.data.sources.find import find, find_two
from limner.files import cache_folder
from limner.progress import bar
from limner.settings import BUILT_IN_TWO, DataOptions

Look = tuple[Header, bytes, Taken | None]  # of a file: header, digest, and its clips in a data set of clips
_SHOWN = 10  # lines of each list in the printed report
_FIRST = 2**16  # bytes of a file that are read at once
_WHOLE = 2**24  # bytes of a file that are held in memory; a larger one is read twice


@dataclass(frozen=True)
class Report:
    """What `check` found. Counts are of images that can be used."""

    sources: list[str]
    images: int
    formats: dict[str, int]
    modes: dict[str, int]  # Pillow's: L grey, P palette, RGBA with alpha, I;16 16-bit grey
    sizes: dict[str, int]  # 'height x width'
    bits: dict[str, int]
    profiles: dict[str, int]  # colour profiles other than sRGB, by name
    animated: int
    classes: dict[str, int]
    captions: int
    follows: str  # what a model can follow, in words
    duplicates: list[list[str]]  # groups of files with the same content
    problems: list[Problem]
    others: int  # files that are not images, ignored
    kinds: dict[str, int]  # what these are
    notes: list[str]  # sentences on how the sources were read
    advice: list[str]
    clips: int = 0  # of films, animations and numbered images; 0 where --data.frames is 1
    rates: dict[str, int] = field(default_factory=dict)  # frames a second of the clips

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        held = f"{self.clips:,} clips of {self.images:,} files" if self.clips else f"{self.images:,} images"
        lines = [f"{held} in {', '.join(self.sources)}"]
        counted = ("formats", "modes", "sizes", "bits", "rates", "profiles", "classes")
        shown = {name: _counts(getattr(self, name)) for name in counted}
        shown |= {"captions": f"{self.captions:,}", "animated": f"{self.animated:,}"}
        shown["follows"] = self.follows
        shown["others"] = f"{self.others:,} files that are not images: {_counts(self.kinds)}"
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


@dataclass
class _Tally:
    """What was found so far, in memory that grows with what is unlike, not with the images."""

    headers: Counter[Header] = field(default_factory=Counter)
    files: Counter[Header] = field(default_factory=Counter)  # those of the images that are not drawn
    classes: Classes = field(default_factory=Classes)
    captions: int = 0
    problems: list[Problem] = field(default_factory=list)
    unreadable: int = 0  # of the problems, images
    unused: int = 0  # of the problems, texts and rows of metadata, whose images are used
    first: dict[bytes, str] = field(default_factory=dict)  # digest of a file -> the first such file
    same: dict[bytes, list[str]] = field(default_factory=dict)  # of those with the same content: all
    paired: bool = False  # whether the sizes of all images are to be known
    own: list[dict[str, tuple[int, int]]] = field(default_factory=list)  # sizes of images by name, by source
    films: Films = field(default_factory=Films)  # of a data set of clips

    def add(self, item: Item, found: Look | Problem, drawn: bool, cut: Cut | None) -> None:
        if isinstance(found, Problem):
            self.problems.append(found)
            self.unreadable += 1
            return
        header, digest, taken = found
        if cut and taken:
            self.films.add(item, taken, cut)
        self.headers[header] += 1
        self.captions += bool(item.caption)
        self.classes.add(item)
        if drawn:
            return
        if self.paired:
            self.own[-1][item.name] = header.height, header.width
        self.files[header] += 1
        if (name := self.first.setdefault(digest, item.name)) is not item.name:
            self.same.setdefault(digest, [name]).append(item.name)


def check(sources: Sources, options: DataOptions = DEFAULTS, progress: bool = True) -> Report:
    """Reads and decodes everything once, and keeps nothing. Raises LimnerError for a source that does not exist."""
    texts, notes, kinds = named(sources), [], Counter[str]()
    tally = _Tally(paired=way_of(texts, options) == "pairs" and len(texts) == 2)
    cut = cut_of(options)
    for source in _sources(texts, options):
        listing = source.listing()
        tally.own.append({})
        fit = options.fit or "crop"
        act = partial(look, cut, fit, options.hdr) if cut else partial(_look, fit)
        with bar(f"checking {printable(source.name)}", not progress) as watch:
            for item, found in in_parallel(act, listing.items, watch, group=1 if cut else 16):
                tally.add(item, found, source.drawn, cut)
        tally.problems += listing.skipped + listing.unused
        tally.unused += len(listing.unused)
        kinds.update(listing.kinds)
        notes += listing.notes
    tally.problems += tally.films.problems()
    if tally.paired:
        tally.problems += _pairs(tally, texts, options)

    def counted(name: str) -> dict[str, int]:
        counts = Counter[str]()
        for header, count in tally.headers.items():
            counts[str(getattr(header, name))] += count
        return dict(counts.most_common())

    headers, classes = tally.headers, len(tally.classes.names) if options.labels else 0
    report = Report(
        sources=texts,
        images=headers.total(),
        formats=counted("kind"),
        modes=counted("mode"),
        sizes=counted("size"),
        bits=counted("bits"),
        profiles={name: count for name, count in counted("profile").items() if name},
        animated=sum(count for h, count in headers.items() if h.frames > 1),
        classes=dict(tally.classes.counts.most_common()) if len(tally.classes.counts) > 1 else {},
        captions=tally.captions,
        follows=to_follow(headers.total(), tally.captions * options.captions, classes)
        or f"nothing: {NOTHING}",
        duplicates=list(tally.same.values()),
        problems=tally.problems,
        others=kinds.total(),
        kinds=dict(kinds.most_common()),
        notes=notes
        + colour_notes(headers)
        + tally.classes.notes(options.labels)
        + tally.films.notes(headers.total()),
        advice=[],
        clips=len(tally.films.rows),
        rates=tally.films.rates,
    )
    advice = list(_advice(report, tally, options))
    return dataclasses.replace(report, advice=advice or ["No problems found."])


def _sources(texts: Sequence[str], options: DataOptions) -> Iterator[Source]:
    for text in texts:
        if text in BUILT_IN_TWO:
            yield from find_two(text, options.language)
        else:
            clips = options.numbered if options.frames > 1 else ""
            yield find(text, cache_folder(options.cache), options.classes, options.language, clips)


def _pairs(tally: _Tally, texts: Sequence[str], options: DataOptions) -> list[Problem]:
    """What of two sources is no pair."""
    order = (1, 0) if options.reverse else (0, 1)
    given, wanted = (tally.own[i] for i in order)
    rows, partners, problems = partners_of(list(wanted), list(given), texts[order[0]])
    names = [list(wanted)[i] for i in rows]
    sizes, of_given = list(wanted.values()), list(given.values())
    return problems + alike(names, [sizes[i] for i in rows], [of_given[i] for i in partners])[1]


def _look(fit: str, item: Item) -> Look:
    """The header of an image that can be decoded, and a digest of its file, which is read once."""
    with item.image(64, 64) as source:
        if isinstance(source, Image.Image):
            return decode.look(source, fit), b"", None
        content = source.read(_FIRST)
        if len(content) == _FIRST:  # a buffer of _WHOLE for each small file would take longer than reading it
            content += source.read(_WHOLE - _FIRST)
        digest = hashlib.blake2b(content, digest_size=16)
        if len(content) < _WHOLE:
            return decode.look(BytesIO(content), fit), digest.digest(), None
        while block := source.read(2**20):
            digest.update(block)
        source.seek(0)
        return decode.look(source, fit), digest.digest(), None


def _advice(report: Report, tally: _Tally, options: DataOptions) -> Iterator[str]:
    """What to do, in sentences."""
    n, bad = report.images, len(report.problems) - tally.unused - len(tally.films.problems())
    headers, unreadable = tally.files, tally.unreadable
    split_by_image = not report.clips and options.fit != "tiles"

    def among(is_so: Callable[[Header], bool]) -> int:
        return sum(count for header, count in headers.items() if is_so(header))

    if n == 0:
        yield "There are no usable images: choose a folder with PNG, JPEG, WebP or other images."
    elif options.frames > 1 and not report.clips:
        yield tally.films.nothing()
    yield from formats.advice(report.kinds)
    if n == 0:
        return
    if bad:
        yield f"Fix or remove the {bad:,} files listed as problems; training skips them."
    if tally.unused:
        yield f"Fix the {tally.unused:,} texts and rows of metadata listed as problems: what they say is lost."
    if unreadable > options.max_bad * (n + unreadable):
        yield f"They are more than --data.max-bad ({options.max_bad:g}) of all files: training would stop."
    if few := of_few(report.clips or n, "clip" if report.clips else "image", split_by_image):
        yield few
    if report.duplicates:
        extra = sum(len(group) - 1 for group in report.duplicates)
        yield f"Remove {extra:,} duplicates: they are overweighted in training and bias held-out measures."
    if thin := among(lambda h: max(h.height, h.width) > 3 * min(h.height, h.width)):
        yield f"{thin:,} images are over three times longer than wide; --data.fit pad keeps their ends."
    size = common_size(headers) or (tiles.DEFAULT if options.fit == "tiles" else (32, 32))
    yield from size_notes(headers, size, options.fit, tiles.count(headers, size))
    yield from form_notes(headers, 0, options.channels)
    if 0 < (grey := among(lambda h: h.channels == 1)) < n:
        yield f"{grey:,} of {n:,} images are grey, the others coloured; --data.channels 1 makes all grey."
    if 0 < (clear := among(lambda h: h.channels == 4)) < n:
        over = "--data.channels 3 lays them over --data.background"
        yield f"{clear:,} of {n:,} images may be transparent; {over}."
    if len(report.classes) > 1 and (rare := [name for name, count in report.classes.items() if count < 10]):
        yield f"{len(rare):,} classes have fewer than 10 images, such as {rare[0]!r}: add some or merge."
    if 0 < report.captions < n and options.captions:
        yield f"{n - report.captions:,} of {n:,} images have no caption: theirs is empty."
