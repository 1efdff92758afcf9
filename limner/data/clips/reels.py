"""The frames of one item of a source, one by one, as they are packed: of films, animations and numbered images."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image

from limner.data.clips import film
from limner.data.images import animated, decode, deep
from limner.data.images.decode import Form
from limner.data.images.formats import FILMS
from limner.data.images.header import Header, read_header
from limner.data.images.limits import UNDER_WAY, Unusable, check_size, cost
from limner.data.images.opening import Opened, open_image
from limner.data.items import Item

NO_DELAY = 0.1  # seconds for which browsers show a frame without one
_HELD = 2**26  # bytes of a film in an archive that are held in memory; more go to a file


@dataclass
class Frame:
    """One frame, which is converted when its pixels are first asked for."""

    convert: Callable[[], np.ndarray]

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 or uint16 [h, w, C]"""
        return self.convert()


Frames = Iterator[tuple[float, Frame | None]]  # as of `times.at_ticks`


@dataclass
class Reel:
    """An item under way."""

    frames: Frames
    size: tuple[int, int]  # own height and width
    rounding: float = 0.0  # seconds by which times are rounded
    rate: float | None = None  # frames a second, where the file says so
    timed: bool = True  # whether its frames have times
    still: bool = False  # one picture, which does not move
    traits: set[str] = field(default_factory=set)  # known once it is read: see `notes.TRAITS`
    lost: str = ""  # likewise, what could not be read


def is_film(item: Item) -> bool:
    return not item.pictures and PurePosixPath(item.name).suffix.lower() in FILMS


def header_of(item: Item, hdr: str = "refuse") -> Header:
    """What an item of a data set of clips is. Raises as `read_header`."""
    if is_film(item):
        with seekable(item) as source, film.opened(source, hdr) as found:
            return found.header()
    opener: Any = item.image
    with opener(0, 0) as source:
        header = read_header(source)
    if item.pictures:
        return replace(header, frames=len(item.pictures))
    return header if header.format in animated.FORMATS else replace(header, frames=1)


@contextmanager
def reel(item: Item, form: Form, hdr: str = "refuse") -> Iterator[Reel]:
    """The frames of an item as planned. Raises Unusable, and on damaged files nearly anything."""
    opener: Any = item.image
    if item.pictures:
        with opener(form.height, form.width) as source:
            header = read_header(source)
        yield Reel(_numbered(item, form), (header.height, header.width), timed=False)
    elif is_film(item):
        with seekable(item) as source, film.opened(source, hdr) as found:
            yield _of_film(found, form)
    else:
        with opener(form.height, form.width) as source:
            if isinstance(source, Image.Image) or not animated.moves(opener):
                pixels, size = decode.decode_with_size(source, form)
                yield Reel(iter([(0.0, Frame(lambda: pixels[0]))]), size, still=True)
                return
            opened = open_image(source)
            with opened.image:
                width, height = opened.image.size
                if opened.orientation >= 5:
                    width, height = height, width
                animation = Reel(iter(()), (height, width), rounding=0.005)
                animation.frames = _animation(opened, form, animation.traits)
                yield animation


def _numbered(item: Item, form: Form) -> Frames:
    first = None
    for i, opener in enumerate(item.pictures):
        with opener(form.height, form.width) as source:
            pixels, size = decode.decode_with_size(source, form)
        if size != (first := first or size):
            own, other = (f"{height}x{width}" for height, width in (size, first))
            raise Unusable(f"its frames have different sizes, such as {other} and {own}: save all with one")
        yield float(i), Frame(partial(_same, pixels[0]))


def _same(pixels: np.ndarray) -> np.ndarray:
    return pixels


def _animation(opened: Opened, form: Form, traits: set[str]) -> Frames:
    image: Any = opened.image
    time = 0.0
    # The first image of an APNG may be for programs that show no animation.
    for i in range(int(getattr(image, "default_image", False)), image.n_frames):
        image.seek(i)
        check_size(*image.size)
        with UNDER_WAY.hold(cost(image, opened.deep)):
            pixels = decode.frame(replace(opened, deep=deep.layout(image), frame=i), form)
        yield time, Frame(partial(_same, pixels))
        delay = float(image.info.get("duration") or 0) / 1000
        if delay <= 0:
            traits.add("no delay")
            delay = NO_DELAY
        time += delay
    yield time, None


def _of_film(found: film.Film, form: Form) -> Reel:
    frames = found.frames()
    first = next(frames, None)
    if first is None:
        raise Unusable("no frame of it can be decoded: its start is damaged or cut off")
    image, aspect = found.image(first[1]), found.aspect(first[1])
    size = image.height, max(1, round(image.width * aspect))
    reel = Reel(iter(()), size, film.ROUNDING, found.rate, traits=found.traits(first[1]))

    def each() -> Frames:
        read = 0
        for time, frame in _with(first, frames):
            read += 1
            yield time, Frame(partial(_fitted, found, frame, form))
        reel.lost = found.lost(read)

    reel.frames = each()
    return reel


def _with(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _fitted(found: film.Film, frame: Any, form: Form) -> np.ndarray:
    pixels = decode.resized(found.image(frame), 1, form, aspect=found.aspect(frame))
    if pixels.ndim == 2:
        return pixels[..., None]
    return np.minimum(pixels, pixels[..., 3:]) if pixels.shape[-1] == 4 else pixels


@contextmanager
def seekable(item: Item) -> Iterator[IO[bytes]]:
    """The file of an item; a long one in an archive is copied beside, so that memory does not grow with it."""
    opener: Any = item.image
    with opener() as stream:
        if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
            yield stream
            return
        with tempfile.SpooledTemporaryFile(_HELD) as copy:
            while block := stream.read(2**20):
                copy.write(block)
            copy.seek(0)
            yield copy  # type: ignore[misc]
