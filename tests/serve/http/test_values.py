"""Each way in which a field can be wrong: read from JSON and from the text of a form."""

import math

import pytest

from limner.serve.http.errors import ApiError
from limner.serve.http.tables import knob_field
from limner.serve.http.values import LARGEST, Field, read_fields
from limner.serve.messages import Knob

COUNT = Field("n", "integer", least=1, most=10)
SEED = Field("seed", "integer", least=0, most=LARGEST)
SHARE = Field("share", "number", least=0, most=1, above=True, below=True)
FREE = Field("free", "number")
SWITCH = Field("stream", "boolean")
WORD = Field("solver", choices=("euler", "heun"))
TEXT = Field("prompt", required=True, longest=20)
PAIR = Field("between", "list", entries="integer", count=(2, 2), least=0, most=100)


def wrong(field, value, text=False):
    with pytest.raises(ApiError) as caught:
        field.read(value, text)
    error = caught.value
    assert error.status == 400 and error.param == field.name and len(error.message) < 200
    return error.code


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        (COUNT, 0, "invalid_value"),
        (COUNT, 11, "invalid_value"),
        (COUNT, -1, "invalid_value"),
        (COUNT, 10**9, "invalid_value"),
        (COUNT, 10**400, "invalid_value"),
        (COUNT, -(10**400), "invalid_value"),
        (COUNT, 2.5, "invalid_type"),
        (COUNT, 2.0, "invalid_type"),
        (COUNT, True, "invalid_type"),
        (COUNT, "2", "invalid_type"),
        (COUNT, [2], "invalid_type"),
        (COUNT, {"n": 2}, "invalid_type"),
        (SEED, LARGEST + 1, "invalid_value"),
        (SEED, -1, "invalid_value"),
        (SHARE, 0, "invalid_value"),
        (SHARE, 1, "invalid_value"),
        (SHARE, math.nan, "invalid_value"),
        (SHARE, math.inf, "invalid_value"),
        (FREE, math.inf, "invalid_value"),
        (FREE, -math.inf, "invalid_value"),
        (FREE, math.nan, "invalid_value"),
        (FREE, 10**400, "invalid_value"),
        (FREE, "1.5", "invalid_type"),
        (FREE, True, "invalid_type"),
        (SWITCH, 1, "invalid_type"),
        (SWITCH, "true", "invalid_type"),
        (WORD, "zzz", "invalid_value"),
        (WORD, "", "invalid_value"),
        (WORD, 1, "invalid_type"),
        (TEXT, None, "invalid_type"),
        (TEXT, "x" * 21, "string_above_max_length"),
        (TEXT, "a\ud800", "invalid_value"),
        (TEXT, ["a"], "invalid_type"),
        (PAIR, 1, "invalid_type"),
        (PAIR, [1], "invalid_value"),
        (PAIR, [1, 2, 3], "invalid_value"),
        (PAIR, [1, "2"], "invalid_type"),
        (PAIR, [1, [2]], "invalid_type"),
        (PAIR, [1, 101], "invalid_value"),
    ],
)
def test_wrong_in_json(field, value, code):
    assert wrong(field, value) == code


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        (COUNT, "eleven", "invalid_type"),
        (COUNT, "1.5", "invalid_type"),
        (COUNT, "11", "invalid_value"),
        (COUNT, "9" * 40, "invalid_value"),
        (COUNT, "9" * 400, "invalid_type"),
        (COUNT, "١", "invalid_type"),
        (COUNT, "1_0", "invalid_type"),
        (COUNT, ["1", "2"], "invalid_type"),
        (FREE, "nan", "invalid_type"),
        (FREE, "Infinity", "invalid_type"),
        (FREE, "1e999", "invalid_value"),
        (FREE, "0x10", "invalid_type"),
        (SWITCH, "yes", "invalid_type"),
        (PAIR, ["1", "b"], "invalid_type"),
        (WORD, "zzz", "invalid_value"),
    ],
)
def test_wrong_in_forms(field, value, code):
    assert wrong(field, value, text=True) == code


def test_right():
    assert COUNT.read(10) == 10 and SEED.read(LARGEST) == LARGEST and SWITCH.read(False) is False
    assert FREE.read(2) == 2.0 and isinstance(FREE.read(2), float)
    assert WORD.read("heun") == "heun" and TEXT.read("") == "" and PAIR.read([1, 100]) == [1, 100]
    assert COUNT.read(None) is None


def test_right_in_forms():
    assert (
        COUNT.read("10", True) == 10 and FREE.read("-1.5e2", True) == -150.0 and FREE.read("3", True) == 3.0
    )
    assert SWITCH.read("True", True) is True and SWITCH.read("false", True) is False
    assert PAIR.read(["1", "2"], True) == [1, 2]
    assert COUNT.read("", True) is None  # as the client writes null
    assert TEXT.read("", True) == ""


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(
        ApiError, match=r"^stpes is not a parameter of this request. Did you mean steps\?$"
    ) as caught:
        read_fields({"stpes": 1}, [Field("steps", "integer"), WORD], False, {})
    assert caught.value.code == "unsupported_parameter" and caught.value.param == "stpes"


@pytest.mark.parametrize("name", ["../../etc/passwd", "x" * 10_000, "a\ud800", "<script>"])
def test_strange_names_are_not_repeated(name):
    with pytest.raises(ApiError, match=r"^That is not a parameter") as caught:
        read_fields({name: 1}, [WORD], False, {})
    assert caught.value.param is None


def test_what_is_refused_says_why():
    with pytest.raises(ApiError, match="svg is not supported: pixels only"):
        read_fields({"svg[model]": "x"}, [WORD], True, {"svg": "pixels only"})
    assert read_fields({"svg": None}, [WORD], False, {"svg": "pixels only"}) == {}


def test_caps_of_this_server():
    assert knob_field(Knob("steps", "integer", 8, least=1, most=2**20)).most == 250
    assert knob_field(Knob("repaints", "integer", 4)).most == 8
    assert knob_field(Knob("steps", "integer", 8, most=100)).most == 100
    assert knob_field(Knob("other", "integer", 8, most=2**20)).most == 2**20


def test_a_number_of_a_few():
    field = knob_field(Knob("order", "integer", 2, choices=("1", "2", "3")))
    assert field.read(3) == 3 and field.schema()["enum"] == [1, 2, 3, None]
    assert wrong(field, 4) == "invalid_value"


def test_schema_says_what_read_takes():
    assert COUNT.schema() == {"type": ["integer", "null"], "minimum": 1, "maximum": 10}
    assert SHARE.schema() == {"type": ["number", "null"], "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    assert TEXT.schema() == {"type": "string", "maxLength": 20}
    assert WORD.schema()["enum"] == ["euler", "heun", None]
    assert PAIR.schema()["items"] == {"type": "integer", "minimum": 0, "maximum": 100}
