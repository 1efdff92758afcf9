"""Texts and tables beside images: captions, labels, metadata.jsonl and metadata.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limner.data.sources import Opener, printable
from limner.settings import LimnerError


def one_line(value: Any) -> str | None:
    """A text or a number with each run of white space as one space; None for anything else, or nothing."""
    return " ".join(str(value).split()) or None if isinstance(value, str | int) else None


def read_text(opener: Opener) -> str:
    with opener() as file:
        return file.read().decode("utf-8-sig", "replace")


def parse_json(text: str | None) -> dict[str, Any]:
    """The table in a .json beside an image; {} if there is none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def first(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    return next(filter(None, (one_line(row.get(column)) for column in columns)), None)


def read_rows(name: str, opener: Opener) -> Iterator[dict[str, Any]]:
    """The rows of a metadata file, each with its file_name."""
    try:
        text = read_text(opener)
        jsonl = name.lower().endswith("l")
        rows: list[Any] = list(_json_lines(name, text) if jsonl else csv.DictReader(io.StringIO(text)))
    except LimnerError:
        raise
    except Exception as error:  # whatever a damaged archive or table raises
        raise LimnerError(f"{printable(name)} cannot be read ({error}): fix or remove it.") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            where = f"row {number} of {printable(name)}"
            raise LimnerError(f"{where} has no file_name: each row must name its image.")
        yield row


def _json_lines(name: str, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                where = f"line {number} of {printable(name)}"
                raise LimnerError(f"{where} is not JSON ({error}): fix or remove it.") from None
