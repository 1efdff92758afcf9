"""Bodies as they arrive: JSON and forms that are cut, deep, doubled, too large or no such thing."""

import asyncio
import time

import pytest

from limner.serve.http.bodies import Limits, digest, parse_json, read_form, read_json
from limner.serve.http.errors import ApiError

LIMITS = Limits(pictures=1000, values=500)


async def chunks(data, size=7):
    for start in range(0, len(data), size):
        yield data[start : start + size]


def form(parts, boundary=b"xyz", end=b"--\r\n"):
    """Bytes of a form of (headers, content)."""
    written = b"".join(
        b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + body + b"\r\n" for head, body in parts
    )
    return written + b"--" + boundary + end


def text(name, value):
    return b'Content-Disposition: form-data; name="%s"' % name, value


def file(name, value):
    head = b'Content-Disposition: form-data; name="%s"; filename="upload"\r\n' % name
    return head + b"Content-Type: application/octet-stream", value


def read(data, kind="multipart/form-data; boundary=xyz", limits=LIMITS, size=7):
    return asyncio.run(read_form(chunks(data, size), kind, limits))


def wrong(function, *arguments, **named):
    with pytest.raises(ApiError) as caught:
        function(*arguments, **named)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize(
    "body",
    [
        b"", b"  \n", b"{", b'{"a": 1', b'{"a": "b', b"[1, 2]", b"1", b"null", b'{"a": NaN}', b'{"a": Infinity}',
        b'{"a": -Infinity}', b'{"a": 1}{"b": 2}', b'{"a": 1, "a": 2}', b'{"x": {"a": 1, "a": 1}}', b'{"\\ud800": 1}',
        b'{"a": "\xff"}', '{"a": 1}'.encode("utf-16"), b'{"a": 01}', b"{'a': 1}", b'{"a": "\x01"}',
        b"[" * 10_000, b'{"a":' * 10_000, b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", b'{"a": ' + b"[" * 33,
    ],
)  # fmt: skip
def test_wrong_json(body):
    assert wrong(parse_json, body) == (400, "invalid_json")


def test_json_is_read():
    assert parse_json('{"a": "ü[[[{\\"[", "b": [1, 2.5, true, null]}'.encode()) == {
        "a": 'ü[[[{"[', "b": [1, 2.5, True, None],
    }  # fmt: skip
    assert parse_json(b'{"a": ' + b"[" * 31 + b"]" * 31 + b"}")


def test_a_number_of_many_digits_costs_nothing():
    begun = time.process_time()
    value = parse_json(b'{"a": ' + b"9" * 1_000_000 + b', "b": -' + b"9" * 400 + b"}")
    assert value["a"] >= 10**30 and value["b"] <= -(10**30)
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    "body", [b'{"a": "' + b'\\"' * 500_000, b'"' * 1_000_001, b"\\" * 1_000_000, b"[]" * 500_000]
)
def test_hostile_json_is_refused_quickly(body):
    begun = time.process_time()
    assert wrong(parse_json, body) == (400, "invalid_json")
    assert time.process_time() - begun < 2


def test_json_is_counted_while_it_arrives():
    seen = 0

    async def endless():
        nonlocal seen
        while True:
            seen += 100
            yield b" " * 100

    assert wrong(lambda: asyncio.run(read_json(endless(), 1000))) == (413, "request_too_large")
    assert seen <= 1200


def test_a_form_is_read():
    data = form([
        text(b"prompt", "größer".encode()), text(b"between[]", b"1"), text(b"between[]", b"2"), text(b"one[]", b"x"),
        file(b"image[]", b"\x89PNG\r\n--xy\r\n"), file(b"image[]", b"second"), file(b"mask", b""),
    ])  # fmt: skip
    for size in (1, 7, 100_000):
        found = read(data, size=size)
        assert found.values() == {"prompt": "größer", "between": ["1", "2"], "one": ["x"]}
        assert found.files == {"image": [b"\x89PNG\r\n--xy\r\n", b"second"], "mask": [b""]}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"--xyz", b"nothing of a form", form([text(b"a", b"1")])[:-4], form([text(b"a", b"1")])[:20],
        form([text(b"a", b"1")], end=b"\r\n"), form([(b"Content-Disposition: form-data", b"1")]),
        form([(b'Content-Disposition: form-data; name=""', b"1")]), form([(b"X-Other: 1", b"1")]),
        form([(b'Content-Disposition: attachment; name="a"', b"1")]), form([text(b"a", b"\xff\xfe")]),
        form([text(b"a", b"1")] * 65), form([text(b"a", b"1")] * 10_000), form([file(b"image", b"1")] * 5),
        form([(b"X: 1\r\n" * 40 + text(b"a", b"1")[0], b"1")]),
        form([(b"X: " + b"1" * 9000 + b"\r\n" + text(b"a", b"1")[0], b"1")]),
        form([(text(b"a", b"1")[0] + b"\r\nContent-Transfer-Encoding: base64", b"1")]),
        form([text(b"a", b"1")], boundary=b"other"),
    ],
)  # fmt: skip
def test_wrong_forms(data):
    assert wrong(read, data, size=1000) == (400, "invalid_multipart")


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 71],
)
def test_forms_without_a_boundary(kind):
    assert wrong(read, form([text(b"a", b"1")]), kind) == (400, "invalid_multipart")


def test_other_kinds_of_form():
    assert wrong(read, b"a=1", "application/x-www-form-urlencoded")[0] == 415
    assert wrong(read, b"a=1", "")[0] == 415


def test_forms_are_counted_while_they_arrive():
    assert wrong(read, form([file(b"image", b"x" * 600), file(b"mask", b"x" * 600)])) == (
        413,
        "request_too_large",
    )
    assert wrong(read, form([text(b"a", b"x" * 300), text(b"b", b"x" * 300)])) == (413, "request_too_large")
    assert read(form([file(b"image", b"x" * 1000), text(b"b", b"x" * 500)])).files["image"] == [b"x" * 1000]


def test_a_body_sent_again_has_the_same_digest():
    one = read(form([text(b"a", b"1"), file(b"image", b"x")]))
    again = read(form([text(b"a", b"1"), file(b"image", b"x")], b"abc"), "multipart/form-data; boundary=abc")
    other = read(form([text(b"a", b"1"), file(b"image", b"y")]))
    assert digest("edit", None, one) == digest("edit", None, again) != digest("edit", None, other)
    assert digest("generation", {"a": 1, "b": 2}, None) == digest("generation", {"b": 2, "a": 1}, None)
    assert digest("generation", {"a": 1}, None) != digest("generation", {"a": "1"}, None)
    assert digest("generation", {"a": 1}, None) != digest("embedding", {"a": 1}, None)
