"""Bodies of requests, read while they arrive: strict JSON, and forms whose files stay in memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from limner.serve.http.errors import ApiError
from limner.serve.http.values import is_unicode, shown

DEEPEST = 32  # levels of JSON
LONG = 2**18  # bytes of JSON that are not parsed between two events of the server
DIGITS = 32  # of a whole number; more are out of every range
TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """Of a body, in bytes and in numbers of things."""

    json: int = 2**20
    pictures: int = 20 * 10**6  # bytes of all pictures
    files: int = 4  # pictures
    parts: int = 64
    headers: int = 16  # of a part
    header: int = 4096  # bytes of one
    values: int = 2**20  # bytes of all that is no picture

    @property
    def json_pictures(self) -> int:
        """Bytes of JSON that holds pictures in base64."""
        return self.json + (self.pictures + 2) // 3 * 4

    @property
    def form(self) -> int:
        """Bytes of a form, with what stands between its parts."""
        return self.pictures + self.values + self.parts * (self.headers * self.header)


@dataclass
class Form:
    """A form: texts and pictures by name, ``image[]`` as ``image``."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)
    lists: set[str] = field(default_factory=set)  # names that ended in []

    def values(self) -> dict[str, Any]:
        """The texts by name, lists where there are several or the name ended in []."""
        return {
            name: texts if len(texts) > 1 or name in self.lists else texts[0]
            for name, texts in self.fields.items()
        }


def digest(route: str, body: Mapping[str, Any] | None, form: Form | None) -> str:
    """Of what a request says, however it is written: a body that is sent again has the same."""
    said: Any = body
    if form is not None:
        files = {
            name: [hashlib.sha256(data).hexdigest() for data in files] for name, files in form.files.items()
        }
        said = [form.values(), files]
    return hashlib.sha256(json.dumps([route, said], sort_keys=True).encode()).hexdigest()


# ---- JSON


def _wrong_json(message: str) -> ApiError:
    return ApiError(400, message, "invalid_json")


async def read_json(chunks: AsyncIterator[bytes], limit: int) -> dict[str, Any]:
    """The object in a body of JSON. Raises ApiError 400, or 413 past ``limit`` bytes."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise ApiError(
                413, f"The body is too large: send at most {limit:,} bytes of JSON.", "request_too_large"
            )
    if len(body) > LONG:
        return await asyncio.to_thread(parse_json, bytes(body))
    return parse_json(bytes(body))


def parse_json(body: bytes) -> dict[str, Any]:
    """The object in JSON. Strict: no key twice, no NaN, at most 32 levels. Raises ApiError 400."""
    if not body.strip():
        raise _wrong_json("The body is empty: send a JSON object.")
    _check_depth(body)
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_pairs,
            parse_int=_integer,
            parse_float=float,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        raise _wrong_json("The body is not UTF-8: send JSON in UTF-8.") from None
    except (ValueError, RecursionError):
        raise _wrong_json("The body is not valid JSON, or was cut short: send one JSON object.") from None
    if not isinstance(value, dict):
        raise _wrong_json("The body is JSON but not an object: send names and values in braces.")
    return value


def _check_depth(body: bytes) -> None:
    """Before it is parsed, since parsing recurses."""
    depth = 0
    for match in TOKENS.finditer(body):
        token = body[match.start()]
        if token in b"[{":
            depth += 1
            if depth > DEEPEST:
                raise _wrong_json(f"The body is nested too deeply: {DEEPEST} levels are the most.")
        elif token in b"]}":
            depth -= 1


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ApiError(
                    400, "A name stands twice in the body: give each once.", "invalid_json", shown(name)
                )
            seen.add(name)
    if not all(map(is_unicode, found)):
        raise _wrong_json("A name in the body holds half of a surrogate pair: give valid Unicode.")
    return found


def _integer(digits: str) -> int:
    """A number of many digits is not turned into one, which takes time by their square."""
    if len(digits) <= DIGITS:
        return int(digits)
    return -(10**DIGITS) if digits.startswith("-") else 10**DIGITS


def _constant(name: str) -> Any:
    raise _wrong_json(f"The body holds {name}, which is not JSON: give finite numbers.")


# ---- forms


def _wrong_form(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, "invalid_multipart", param)


async def read_form(chunks: AsyncIterator[bytes], content_type: str, limits: Limits) -> Form:
    """A form of multipart/form-data. Raises ApiError 400, or 413 where it is too large."""
    kind, options = parse_options_header(content_type)
    if kind.lower() != b"multipart/form-data":
        raise ApiError(415, "This request takes multipart/form-data: send the pictures as files of a form.")
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise _wrong_form(
            "The content type names no boundary of 1 to 70 characters: let the client make the form."
        )
    parts, size = _Parts(limits), 0
    try:
        parser = MultipartParser(
            boundary,
            parts.callbacks(),  # type: ignore[arg-type]
            max_header_count=limits.headers,
            max_header_size=limits.header,
        )
        async for chunk in chunks:
            size += len(chunk)
            if size > limits.form:
                raise ApiError(
                    413, f"The form is too large: send at most {limits.form:,} bytes.", "request_too_large"
                )
            parser.write(chunk)
    except FormParserError:
        raise _wrong_form("The form is damaged: send valid multipart/form-data.") from None
    if not parts.ended:
        raise _wrong_form("The form was cut short: its last boundary is missing.")
    return parts.form


class _Parts:
    """Takes what the parser finds."""

    def __init__(self, limits: Limits):
        self.limits, self.form = limits, Form()
        self.count = self.pictures = self.texts = 0
        self.ended = False
        self.name, self.is_file = "", False
        self.headers: dict[bytes, bytes] = {}
        self.field, self.value, self.data = bytearray(), bytearray(), bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self.begin,
            "on_header_field": lambda data, start, end: self.field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self.value.extend(data[start:end]),
            "on_header_end": self.header,
            "on_headers_finished": self.named,
            "on_part_data": self.take,
            "on_part_end": self.finish,
            "on_end": self.end,
        }

    def begin(self) -> None:
        self.count += 1
        if self.count > self.limits.parts:
            raise _wrong_form(f"The form has too many parts: {self.limits.parts} are the most.")
        self.headers, self.data = {}, bytearray()

    def header(self) -> None:
        self.headers[bytes(self.field).lower()] = bytes(self.value)
        self.field, self.value = bytearray(), bytearray()

    def named(self) -> None:
        kind, options = parse_options_header(self.headers.get(b"content-disposition", b""))
        try:
            self.name = options.get(b"name", b"").decode()
        except UnicodeDecodeError:
            self.name = ""
        if kind.lower() != b"form-data" or not self.name:
            raise _wrong_form('A part of the form has no name: each needs form-data; name="...".')
        if b"content-transfer-encoding" in self.headers:
            raise _wrong_form(
                "A part of the form is encoded: send its bytes as they are.",
                shown(self.name.removesuffix("[]")),
            )
        self.is_file = b"filename" in options or b"filename*" in options
        if self.is_file and sum(map(len, self.form.files.values())) >= self.limits.files:
            raise _wrong_form(
                f"There are too many pictures: {self.limits.files} are the most.",
                shown(self.name.removesuffix("[]")),
            )

    def take(self, data: bytes, start: int, end: int) -> None:
        limits = self.limits
        if self.is_file:
            self.pictures += end - start
        else:
            self.texts += end - start
        if self.pictures > limits.pictures:
            message = f"The pictures are too large: {limits.pictures:,} bytes together are the most."
            raise ApiError(413, message, "request_too_large", shown(self.name.removesuffix("[]")))
        if self.texts > limits.values:
            message = f"The texts of the form are too large: {limits.values:,} bytes together are the most."
            raise ApiError(413, message, "request_too_large", shown(self.name.removesuffix("[]")))
        self.data += data[start:end]

    def finish(self) -> None:
        name = self.name.removesuffix("[]")
        if name != self.name:
            self.form.lists.add(name)
        if self.is_file:
            self.form.files.setdefault(name, []).append(bytes(self.data))
            return
        try:
            text = self.data.decode()
        except UnicodeDecodeError:
            raise _wrong_form("A text of the form is not UTF-8: send it in UTF-8.", shown(name)) from None
        self.form.fields.setdefault(name, []).append(text)

    def end(self) -> None:
        self.ended = True
