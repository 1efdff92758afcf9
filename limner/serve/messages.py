"""What the HTTP front and the engine say to each other, over a socket between two processes of one machine.

A frame is two lengths (JSON, bytes; 4 bytes each, big-endian), a JSON object and the bytes of all pictures. No torch.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

LENGTHS = struct.Struct("!II")

Kind = Literal["draw", "embed", "classify", "apply"]
Format = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True)
class Knob:
    """A field of a family's Sampling, as a person may set it."""

    name: str
    type: Literal["integer", "number", "string", "boolean", "list"]
    default: Any = None
    help: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None  # None: no bound
    most: float | None = None
    above: bool = False  # ``least`` itself is too low
    below: bool = False
    model: bool = False  # names a served model by its id, never a path


@dataclass(frozen=True)
class Card:
    """What a served run is and can do."""

    id: str
    family: str
    height: int
    width: int
    channels: int
    can: tuple[str, ...]  # of draw, embed, classify, apply
    reads: tuple[str, ...] = ()  # of text, label, image, mask, given, blend
    labels: tuple[str, ...] = ()
    knobs: tuple[Knob, ...] = ()
    created: int = 0  # when its checkpoint was written, seconds since 1970
    digest: str = ""  # of its checkpoint
    fingerprint: str = ""  # names all that the bytes of an answer depend on
    frames: int = 1  # above 1: it draws clips, as animated WebP
    features: int = 0  # dimensions of an embedding
    scale: int = 1  # of ``apply``: pixels a side for each given one


@dataclass(frozen=True)
class Form:
    """How a drawn image is written."""

    format: Format = "png"
    compression: int = 100  # quality of jpeg and webp, 0 to 100
    transparent: bool = True  # keep alpha, where there is one; else it lies on white
    height: int = 0  # resized to; 0: as drawn
    width: int = 0
    metadata: str = ""  # written into a PNG as the text "limner"; empty: nothing


@dataclass(frozen=True)
class Work:
    """One request for one model: images to draw, or pictures to describe."""

    id: int  # the front's number, never used twice by one front
    model: str
    client: str  # whose turn it takes
    kind: Kind = "draw"
    seeds: tuple[int, ...] = ()  # draw: of each image
    between: tuple[int, int] | None = None  # draw: two seeds; image i of n lies i / (n - 1) of the way
    prompt: str | None = None
    label: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # fields of the family's Sampling, as JSON
    scale_steps: float = 1.0  # times the steps (given or the family's own), where the family has steps
    partials: int = 0  # draw: intermediate images of each image, 0 to 3
    form: Form = field(default_factory=Form)
    seconds: float = 0.0  # until it is cancelled, from its arrival at the engine; 0: never
    pictures: tuple[bytes, ...] = ()  # encoded; draw: none, or one to start from or to make the image from
    mask: bytes = b""  # encoded, of the first picture; an alpha of 0 is drawn anew; empty: none


@dataclass(frozen=True)
class Event:
    """What the engine says of a work. The last one of every work is ``ended``, whatever came before."""

    work: int
    kind: Literal["accepted", "begun", "partial", "image", "answer", "failed", "ended"]
    index: int = -1  # of the image or picture; -1: the whole work
    number: int = 0  # partial: which
    evaluations: int = 0  # accepted: of the network for each image; image: those it took
    seconds: float = 0.0  # image: from its first network call to its last
    cancelled: bool = False  # ended: because of a Cancel or a deadline
    value: Any = None  # answer: a list of numbers (embed), or of [class, probability] (classify)
    seed: int | None = None  # image
    fingerprint: str = ""  # image
    status: int = 0  # failed: of HTTP
    code: str = ""
    param: str | None = None
    message: str = ""
    data: bytes = b""  # partial, image: encoded; apply: the picture made


@dataclass(frozen=True)
class Cancel:
    """Nothing more of this work is wanted."""

    work: int


@dataclass(frozen=True)
class Ready:
    """The engine has loaded its runs, or a card has changed."""

    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Report:
    """Counters of the engine since it began, by model; sent at most once a second while they change."""

    model: str
    calls: int = 0  # of networks
    rows: dict[int, int] = field(default_factory=dict)  # rows of a call -> calls
    seconds: float = 0.0  # in network calls
    images: int = 0
    cancelled: int = 0  # images
    out_of_memory: int = 0
    mismatches: int = 0  # calls done again in other company that differed
    flying: int = 0  # now
    waiting: int = 0  # now


def added(one: Report, other: Report) -> Report:
    """The counters of both, of the same model."""
    names = [f.name for f in dataclasses.fields(Report) if f.name not in ("model", "rows")]
    sums = {name: getattr(one, name) + getattr(other, name) for name in names}
    rows = Counter(one.rows) + Counter(other.rows)
    return Report(one.model, rows=dict(sorted(rows.items())), **sums)


@dataclass(frozen=True)
class Stop:
    """End, after the work that has begun or at once."""


Message = Work | Event | Cancel | Ready | Report | Stop
_TYPES: dict[str, type] = {cls.__name__.lower(): cls for cls in (Work, Event, Cancel, Ready, Report, Stop)}


def encode(message: Message) -> bytes:
    """A frame."""
    blobs: list[bytes] = []

    def take(value: Any) -> Any:
        if isinstance(value, bytes):
            blobs.append(value)
            return {"bytes": len(value)}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: take(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {str(key): take(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [take(entry) for entry in value]
        return value

    text = json.dumps([type(message).__name__.lower(), take(message)]).encode()
    data = b"".join(blobs)
    return LENGTHS.pack(len(text), len(data)) + text + data


def decode(text: bytes, data: bytes) -> Message:
    """The message of a frame's two parts."""
    name, fields = json.loads(text)
    rest = memoryview(data)

    def give(value: Any) -> Any:
        nonlocal rest
        if isinstance(value, dict) and value.keys() == {"bytes"}:
            found, rest = bytes(rest[: value["bytes"]]), rest[value["bytes"] :]
            return found
        if isinstance(value, dict):
            return {key: give(entry) for key, entry in value.items()}
        return tuple(map(give, value)) if isinstance(value, list) else value

    read: Message = _TYPES[name](**{key: give(value) for key, value in fields.items()})
    return _nested(read)


def _nested(message: Message) -> Message:
    """With the dataclasses within it made again."""
    if isinstance(message, Work):
        return dataclasses.replace(message, form=Form(**message.form))  # type: ignore[arg-type]
    if isinstance(message, Ready):
        tables: Any = message.cards
        cards = (Card(**{**card, "knobs": tuple(Knob(**knob) for knob in card["knobs"])}) for card in tables)
        return Ready(tuple(cards))
    if isinstance(message, Report):
        return dataclasses.replace(message, rows={int(rows): n for rows, n in message.rows.items()})
    return message


class Frames:
    """Puts what arrives on a socket together into messages."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole now."""
        self.buffer += data
        while len(self.buffer) >= LENGTHS.size:
            text, blob = LENGTHS.unpack_from(self.buffer)
            end = LENGTHS.size + text + blob
            if len(self.buffer) < end:
                return
            middle = LENGTHS.size + text
            parts = bytes(self.buffer[LENGTHS.size : middle]), bytes(self.buffer[middle:end])
            del self.buffer[:end]
            yield decode(*parts)
