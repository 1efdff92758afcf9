"""What stands beside images: texts, and tables with a row for each image, read row by row."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import TextIOWrapper
from itertools import chain
from pathlib import PurePosixPath
from typing import IO, Any

from limner.data.annotations.encoding import NAMES, UNDETECTED, decoded, encoding_of
from limner.data.items import Opener, in_short, printable, same_form
from limner.settings import LimnerError, join_words, need

TABLES = frozenset((".jsonl", ".csv", ".tsv", ".parquet"))  # metadata.* of these is read
LONGEST_TEXT = 2**20  # bytes of a text beside an image, and characters of a caption or label in a table
_LONGEST_ROW = 2**24  # characters of a line in a table
_ROWS = 1024  # of parquet, read at once

_BEYOND = "values beyond the header's columns (commas without quotes)"

# The columns of a table by what they say, in the order in which they are tried.
NAME_COLUMNS = ("file_name", "filename", "file", "image", "path", "file_path", "image_path", "image_file")
TEXT_COLUMNS = ("text", "caption", "prompt", "captions", "texts", "prompts")
LABEL_COLUMNS = ("label", "class", "category", "labels", "class_name", "label_name", "category_name")


@dataclass(frozen=True)
class Columns:
    """Which of a row's columns say what, each in the order in which they are tried."""

    names: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[str]

    @property
    def has_some(self) -> bool:
        return bool(self.texts or self.labels)


@lru_cache(maxsize=1024)
def columns_of(columns: tuple[Any, ...]) -> Columns:
    """By name, whatever the case, with spaces or hyphens for underscores."""
    plain: dict[str, list[str]] = {}
    for column in columns:
        if isinstance(column, str):
            words = same_form(column).casefold().replace("-", " ").replace("_", " ").split()
            plain.setdefault("_".join(words), []).append(column)
    known = NAME_COLUMNS, TEXT_COLUMNS, LABEL_COLUMNS
    return Columns(*([column for name in names for column in plain.get(name, ())] for names in known))


def one_line(value: Any) -> str | None:
    """A text, or a whole number as one, with each run of white space as one space; None for anything else, or nothing.

    Of a list its first text. Numbers may be those of NumPy.
    """
    if isinstance(value, list | tuple):
        return next(filter(None, map(one_line, value)), None)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    elif hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return one_line(value.item())
    return " ".join(str(value).split()) or None if isinstance(value, str | int) else None


def one_label(value: Any) -> str | None:
    """As ``one_line``; None for several labels."""
    several = isinstance(value, list | tuple) and len([label for label in value if one_line(label)]) > 1
    return None if several else one_line(value)


def first(
    row: Mapping[str, Any], columns: Sequence[str], read: Callable[[Any], str | None] = one_line
) -> tuple[str, str] | None:
    """The first column that holds something, and what; None if none does."""
    texts = ((column, read(row.get(column))) for column in columns)
    return next(((column, text) for column, text in texts if text), None)


def _whole(digits: str) -> int | str:
    return int(digits) if len(digits) < 1000 else digits  # Python refuses to read more than 4300


_DECODER = json.JSONDecoder(parse_int=_whole)


def parse_json(text: str) -> Any:
    """Whole numbers of any length. Raises ValueError, also for JSON that is nested too deep."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


# Tables -----------------------------------------------------------------------------------------------------


def read_rows(name: str, opener: Opener, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a metadata file, one after another; to ``notes`` a sentence on its encoding is added if it needs one.

    Raises LimnerError, which names the file and its line.
    """
    suffix = PurePosixPath(name).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(opener)
            return
        with opener() as file:
            codec = encoding_of(file)
        if codec is None:
            raise LimnerError(f"{printable(name)} {UNDETECTED}{_undecodable(opener)}.")
        if not codec.startswith("utf"):
            notes.append(f"{printable(name)} is not UTF-8 and was read as {NAMES[codec]}.")
        with opener() as file, TextIOWrapper(file, codec, newline="\n" if suffix == ".jsonl" else "") as text:
            lines = _lines(name, text)
            yield from _json_rows(name, lines) if suffix == ".jsonl" else _csv_rows(lines)
    except LimnerError:
        raise
    except Exception as error:  # whatever a damaged archive or table raises
        why = f"cannot be read ({in_short(error)})"
        raise LimnerError(f"{printable(name)} {why}: fix or remove it.") from error


def _undecodable(opener: Opener) -> str:
    """Where the first byte is that is not UTF-8."""
    with opener() as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_ROW), b""), 1):
            if decoded(line, "utf-8") is None:
                return f" (line {number:,} is the first that is not)"
    return ""


def _lines(name: str, file: IO[str]) -> Iterator[str]:
    """The lines, which end where the file was opened to end them; not at U+2028 and the like."""
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST_ROW), ""), 1):
        if len(line) == _LONGEST_ROW:
            where = f"line {number} of {printable(name)}"
            raise LimnerError(f"{where} is longer than {_LONGEST_ROW:,} characters: fix or remove it.")
        yield line


def _json_rows(name: str, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError as error:
                where = f"line {number} of {printable(name)}"
                raise LimnerError(f"{where} is not JSON ({error}): fix or remove it.") from None
            yield row if isinstance(row, dict) else {}


def _csv_rows(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Parted by commas, semicolons or tabs, whichever the first line has most of."""
    header = next(lines, "")
    return iter(csv.DictReader(chain([header], lines), delimiter=max(",;\t", key=header.count)))


def _parquet_rows(opener: Opener) -> Iterator[dict[str, Any]]:
    parquet = need("pyarrow.parquet", "metadata.parquet needs the data extra", "data")
    with opener() as file:
        table = parquet.ParquetFile(file)
        numbered = class_names(features_of(table.schema_arrow.metadata))
        for batch in table.iter_batches(_ROWS):
            for row in batch.to_pylist():
                yield {column: named(value, numbered.get(column)) for column, value in row.items()}


def features_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """What `datasets` writes into a parquet file of its columns; {} where it has not."""
    try:
        features = parse_json((metadata or {}).get(b"huggingface", b"{}").decode())["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    kinds = features.items() if isinstance(features, dict) else ()
    return {column: kind for column, kind in kinds if isinstance(kind, dict)}


def class_names(features: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The names of the numbers in each column of classes."""
    return {
        column: list(map(str, kind["names"]))
        for column, kind in features.items()
        if kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
    }


def named(value: Any, names: Sequence[str] | None) -> Any:
    """A class's name for its number; -1 and the like are no class."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def columns_said(columns: Mapping[Any, bool]) -> str:
    """What is read from which columns, and which, that are False, are not used."""
    used = [column for column, is_used in columns.items() if is_used]
    unused = [_BEYOND if column is None else column for column, is_used in columns.items() if not is_used]
    texts = [column for column in used if columns_of((column,)).texts]
    labels = [column for column in used if column not in texts]
    kinds = ("captions", texts), ("labels", labels)
    parts = [f"{what} from {' and '.join(of)}" for what, of in kinds if of]
    said = [", ".join(parts) or "neither captions nor labels"]
    names = ", ".join(unused)[:300]
    if unused and not used and not any(columns_of((column,)).has_some for column in unused):
        wanted = f"{join_words(TEXT_COLUMNS[:3])}, nor {join_words(LABEL_COLUMNS[:3])}"
        said.append(f"of its columns {names} none is {wanted}")
    elif unused:
        said.append(f"columns that are not used: {names}")
    return printable("; ".join(said))
