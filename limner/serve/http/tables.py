"""What each route takes: the tables that requests are read by and that /openapi.json is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from limner.serve.http.asked import Route
from limner.serve.http.values import LARGEST, Field, Type
from limner.serve.messages import Card, Knob

PROMPT = 32_000  # characters
IMAGES = 10  # of a request
CAPS = {"steps": 250, "repaints": 8}  # of a knob, whatever the family allows

QUALITIES = {
    "low": (0.5, "low"), "medium": (1.0, "medium"), "high": (2.0, "high"), "xhigh": (4.0, "xhigh"),
    "max": (4.0, "max"), "standard": (1.0, "medium"), "hd": (2.0, "high"), "auto": (1.0, "medium"),
}  # fmt: skip
"""Times the steps, and what the answer says."""

# Parameters of the API that no model here has, and why.
REFUSED: Mapping[str, str] = {
    "svg": "pictures are drawn as pixels", "gif": "choose png, jpeg or webp", "markup": "use a mask",
    "frame_count": "a model draws the frames it was trained on",
    "frame_duration_ms": "a model keeps the rate it was trained on", "complexity": "set quality, or steps",
    "image_url": "send the picture itself; nothing is fetched here", "url": "send the picture itself",
    "image_urls": "send the pictures themselves", "images": "send the pictures as files named image",
    "file_id": "send the picture itself; no files are kept here",
}  # fmt: skip

MODEL = Field("model", help="id of a served model; may be left out where only one can answer", longest=256)
IDENTIFIERS = (
    Field("user", help="whose turn it is, where safety_identifier does not say; no effect with tokens"),
    Field("safety_identifier", help="whose turn it is, among those without tokens"),
)
SEED = Field(
    "seed",
    "integer",
    "image i is drawn by seed + i; chosen and told where it is left out",
    least=0,
    most=LARGEST,
)
WRITTEN = (
    Field(
        "output_format", help="of the files", choices=("png", "jpeg", "webp"), refused=("gif", "svg")
    ),
    Field("output_compression", "integer", "quality of jpeg and webp", default=100, least=0, most=100),
    Field(
        "background", help="transparent: keep alpha, which the model must have; opaque: on white",
        default="auto", choices=("auto", "transparent", "opaque"),
    ),
    Field(
        "response_format", help="url: a path on this server that expires", default="b64_json",
        choices=("b64_json", "url"),
    ),
)  # fmt: skip
DRAWN = (
    MODEL,
    Field("n", "integer", "number of images", default=1, least=1, most=IMAGES),
    Field("size", help="WIDTHxHEIGHT: auto, or the model's own", default="auto", longest=16),
    Field(
        "quality", help="times the steps: low 1/2, high 2, xhigh and max 4", default="auto", choices=tuple(QUALITIES)
    ),
    *WRITTEN,
    SEED,
    Field("label", help="name of a class, of a model that has classes"),
    Field(
        "between", "list", "two seeds: the images lie on the way from the first's to the second's", entries="integer",
        count=(2, 2), least=0, most=LARGEST,
    ),
    *IDENTIFIERS,
)  # fmt: skip
TEXT = Field(
    "prompt", help="a text; a class by its name for a model of classes; unused by a model that draws without either",
    required=True, longest=PROMPT,
)  # fmt: skip
STREAMED = (
    Field("stream", "boolean", "answer by server-sent events", default=False),
    Field("partial_images", "integer", "images under way, of a stream", default=0, least=0, most=3),
)
UNUSED = (
    Field("moderation", help="no effect", choices=("auto", "low")),
    Field("style", help="no effect", choices=("vivid", "natural")),
)
IGNORED_BY_APPLY = (
    Field("prompt", help="no effect: pictures are made from pictures alone", longest=PROMPT),
    Field("label", help="no effect, as prompt"),
)
IDLE = frozenset(field.name for field in UNUSED)
FIDELITY = Field(
    "input_fidelity", help="high: strength 0.4, where strength is not given", choices=("high", "low")
)


ENCODING = Field(
    "encoding_format", help="base64: float32, little-endian", default="float", choices=("float", "base64")
)
DIMENSIONS = Field("dimensions", "integer", "the model's own", least=1, most=2**20)


@dataclass(frozen=True)
class Table:
    """A route: its fields, and the pictures that its form holds, by name with the least and the most of each."""

    route: Route
    path: str
    help: str
    can: str  # what a model must be able to do
    fields: tuple[Field, ...]
    pictures: Mapping[str, tuple[int, int]] | None = None  # None: the body is JSON
    inputs: bool = False  # JSON with pictures in ``input``
    streams: bool = False
    events: str = ""  # what its streamed events are named after


TABLES: dict[Route, Table] = {
    "generation": Table(
        "generation", "/v1/images/generations", "Draw images.", "draw",
        (TEXT, *DRAWN, *STREAMED, *UNUSED, FIDELITY), streams=True, events="image_generation",
    ),
    "edit": Table(
        "edit", "/v1/images/edits", "Draw from a picture, or anew where its mask is transparent.", "draw",
        (TEXT, *DRAWN, *STREAMED, *UNUSED, FIDELITY), {"image": (1, 1), "mask": (0, 1)}, streams=True,
        events="image_edit",
    ),
    "variation": Table(
        "variation", "/v1/images/variations", "Draw images like a picture.", "draw", (*DRAWN, FIDELITY),
        {"image": (1, 1)}, events="image_variation",
    ),
    "embedding": Table(
        "embedding", "/v1/embeddings", "Describe pictures by numbers.", "embed",
        (MODEL, ENCODING, DIMENSIONS, *IDENTIFIERS), inputs=True,
    ),
    "classify": Table(
        "classify", "/v1/classify", "Say which classes pictures are of.", "classify", (MODEL, *IDENTIFIERS),
        {"image": (1, 4)},
    ),
    "apply": Table(
        "apply", "/v1/apply", "Make a picture from each picture.", "apply",
        (MODEL, *WRITTEN, SEED, *IGNORED_BY_APPLY, *IDENTIFIERS), {"image": (1, 4)},
    ),
}  # fmt: skip


def knob_field(knob: Knob) -> Field:
    """A field of a family's sampling, as a parameter of a request."""
    most = knob.most
    if knob.name in CAPS and (most is None or most > CAPS[knob.name]):
        most = CAPS[knob.name]
    field = Field(
        knob.name,
        knob.type,
        knob.help,
        knob.default,
        False,
        knob.choices,
        (),
        knob.least,
        most,
        knob.above,
        knob.below,
    )
    return replace(field, entries=_entries(knob)) if knob.type == "list" else field


def _entries(knob: Knob) -> Type:
    """The type of a list's entries, which its default shows."""
    first = next(iter(knob.default or ()), 0.0)
    kinds: dict[type, Type] = {bool: "boolean", int: "integer", str: "string"}
    return kinds.get(type(first), "number")


def fields_of(table: Table, card: Card) -> tuple[Field, ...]:
    """All parameters of a request to a model: the route's, then the family's own."""
    knobs = {knob.name: knob_field(knob) for knob in card.knobs if table.can in ("draw", "apply")}
    own = [field for field in table.fields if field.name not in IDLE or field.name not in knobs]
    taken = {field.name for field in own}
    return (*own, *(field for name, field in knobs.items() if name not in taken))
