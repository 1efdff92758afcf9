"""Whatever a request says, it is read or refused by 400; nothing else is ever raised."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from limner.serve.http.asked import Caller
from limner.serve.http.bodies import Form, parse_json
from limner.serve.http.errors import ApiError
from limner.serve.http.pictures import look
from limner.serve.http.reading import Defaults
from limner.serve.http.requests import parse
from limner.serve.http.tables import REFUSED, TABLES
from limner.serve.messages import encode
from tests.serve.fake_engine import CARDS, FakeEngine
from tests.serve.http.front import MASK, PICTURE

NAMES = sorted(
    {field.name for table in TABLES.values() for field in table.fields}
    | {knob.name for card in CARDS for knob in card.knobs}
    | {*REFUSED, "input", "type", "mask", "image"}
)
WORDS = [
    "",
    "auto",
    "png",
    "cat",
    "euler",
    "1",
    "true",
    "12x8",
    "data:image/png;base64,AAAA",
    "../../etc/passwd",
    "\ud800",
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), st.text(max_size=30),
    st.sampled_from(WORDS),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3)
)
FIELDS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=10), VALUES, max_size=6)
MODELS = st.sampled_from([{"model": card.id} for card in CARDS])


def take(route, body, form):
    """The work can be sent to an engine, or the error to a client."""
    try:
        asked = parse(route, body, form, FakeEngine(), Caller(), Defaults(), job=False)
    except ApiError as error:
        assert error.status in (400, 404, 413), error.message
        text = json.dumps(error.body())
        assert "passwd" not in text and len(text) < 600
        error.message.encode()
    else:
        encode(asked.work)
        assert all(value.isascii() for value in asked.headers.values())


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["generation", "embedding"]), MODELS, FIELDS)
def test_json(route, model, body):
    take(route, {"prompt": "cat", **model, **body}, None)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["edit", "variation", "classify", "apply"]),
    MODELS,
    st.dictionaries(
        st.sampled_from(NAMES) | st.text(max_size=8),
        st.lists(st.text(max_size=20) | st.sampled_from(WORDS), min_size=1, max_size=3),
        max_size=5,
    ),
    st.dictionaries(
        st.sampled_from(["image", "mask", "markup", "x"]),
        st.lists(st.sampled_from([PICTURE, MASK, b"", PICTURE[:30]]), min_size=1, max_size=3),
        max_size=2,
    ),
)
def test_forms(route, model, fields, files):
    fields = {"prompt": ["cat"], "model": [model["model"]]} | fields
    take(route, None, Form(fields, {"image": [PICTURE], **files}))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\0e1.-tfn ', max_size=60).map(str.encode))
def test_bytes_as_json(body):
    try:
        assert isinstance(parse_json(body), dict)
    except ApiError as error:
        assert error.status == 400


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBP", b""]),
    st.binary(max_size=80),
)
def test_bytes_as_pictures(first, rest):
    try:
        look(first + rest, "image")
    except ApiError as error:
        assert (error.status, error.param) == (400, "image")
