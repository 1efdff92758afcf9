"""Tables of images: parquet files, and data sets of the Hugging Face hub named by the person."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from limner.data.annotations.folder_names import TRAIN, splits_of
from limner.data.annotations.labels import RULES, by_origin
from limner.data.annotations.metadata import (
    class_names,
    columns_of,
    columns_said,
    features_of,
    first,
    named,
    one_label,
)
from limner.data.items import Item, Listing, Source, in_short, plain, printable, stamp
from limner.settings import LimnerError, need

_IMAGES = "image img images picture photo jpg jpeg png webp".split()  # columns, as they are tried
_ROWS = 4096  # whose texts are read at once


@dataclass(frozen=True)
class _Part:
    """One file of a table, or all of it."""

    name: str  # for messages
    table: Any  # pyarrow's
    classes: dict[str, list[str]]  # names of the numbers in columns of classes
    images: Sequence[str] = ()  # columns that are declared as images
    folder: Path = Path()  # that paths of images start from
    split: str = ""  # the relative name of the file, or that of the split, which may say train, val or test


def parquet(text: str, paths: Sequence[Path]) -> Source:
    """Parquet files with a column of images: bytes, paths, or both as `datasets` writes them."""
    stamps = [(p.name, *stamp(p.stat())) for p in paths]
    top = Path(os.path.commonpath([p.parent for p in paths]))

    def load() -> Iterator[_Part]:
        module = need("pyarrow.parquet", "Parquet sources need the data extra", "data")
        for path in paths:
            try:
                table = module.ParquetFile(path, memory_map=True).read()
            except Exception as error:  # pyarrow raises OSError, ValueError and kinds of its own
                why = f"cannot be read as parquet ({in_short(error)})"
                raise LimnerError(f"{path} {why}: write it again.") from None
            features = features_of(table.schema.metadata)
            images, split = _of_type(features, "Image"), path.relative_to(top).as_posix()
            yield _Part(path.name, table, class_names(features), images, path.parent, split)

    return Source(text, ["parquet", RULES, stamps], partial(_listing, load))


def hub(text: str) -> Source:
    """'hf:owner/name' or 'hf:owner/name:config': the splits for training, validation and test, or the first one."""
    name, _, config = text.removeprefix("hf:").partition(":")

    def load() -> Iterator[_Part]:
        datasets = need("datasets", "hf: sources need the data extra", "data")
        try:
            splits = datasets.load_dataset(name, config or None)
            known = [split for split in splits if splits_of([split])]
            chosen = known if TRAIN in splits_of(known).values() else list(splits)[:1]
        except Exception as error:  # the hub client raises its own kinds, which change between versions
            raise LimnerError(f"{text} cannot be loaded. {in_short(error)}") from None
        for split in chosen:
            where = f"{text} ({split})" if len(chosen) > 1 else text
            try:
                kinds, table = splits[split].features, splits[split].with_format("arrow")[:]
            except Exception as error:
                raise LimnerError(f"{where} cannot be loaded. {in_short(error)}") from None
            classes = {n: list(k.names) for n, k in kinds.items() if isinstance(k, datasets.ClassLabel)}
            images = [n for n, kind in kinds.items() if isinstance(kind, datasets.Image)]
            yield _Part(where, table, classes, images, split=split)

    return Source(text, ["hub", RULES, name, config], partial(_listing, load))


def _of_type(features: Mapping[str, Mapping[str, Any]], kind: str) -> list[str]:
    return [column for column, about in features.items() if about.get("_type") == kind]


def _listing(load: Callable[[], Iterator[_Part]]) -> Listing:
    items: list[Item] = []
    origins: list[str] = []  # what may say the split of each image
    said: dict[str, list[str]] = {}  # sentence -> the files that it is true of
    kinds: dict[str, tuple[str, str]] = {}  # column of labels -> what it holds, and in which file
    for part in load():
        names = part.table.column_names
        column, use, start = _image_column(part), columns_of(tuple(names)), len(items)
        labels = [name for name in use.labels or list(part.classes)[:1] if name != column]
        for name in labels:
            _check_alike(part, name, kinds)
        used, images = {name: False for name in names if name != column}, part.table[column]
        for i, row in enumerate(_rows(part, [*labels, *use.texts])):
            label, text = first(row, labels, one_label), first(row, use.texts)
            used |= {found[0]: True for found in (label, text) if found}
            texts = label and plain(label[1]), text and printable(text[1])
            items.append(Item(f"{column}/{start + i}", partial(_open, images, i, part.folder), *texts))
        said.setdefault(columns_said(used), []).append(part.name)
        origins += [part.split] * (len(items) - start)
    found = Listing(items, notes=[f"{_several(files)}: {what}." for what, files in said.items()])
    return by_origin(found, origins)


def _several(files: Sequence[str]) -> str:
    return " and ".join(files) if len(files) < 3 else f"{files[0]} and {len(files) - 1:,} more files"


def _image_column(part: _Part) -> str:
    """The column of images: one declared as such, or one of a usual name, or the only one of bytes."""
    pa = need("pyarrow", "Parquet sources need the data extra", "data")
    schema = part.table.schema
    plain = {name.strip().lower(): name for name in reversed(schema.names)}
    holding = [field.name for field in schema if _holds_bytes(pa, field.type)]
    usual = [plain[name] for name in _IMAGES if name in plain]
    column = next(iter([*part.images, *usual, *(holding if len(holding) == 1 else ())]), None)
    if column is None or column not in schema.names:
        has = printable(", ".join(schema.names))[:300]
        raise LimnerError(f"{part.name} has no column of images; its columns are {has}.")
    kind = schema.field(column).type
    if column not in holding and not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        raise LimnerError(
            f"The column {column} of {part.name} holds {str(kind)[:100]}, not images: write each as the bytes of a PNG "
            "or another image file, or as its path."
        )
    return column


def _holds_bytes(pa: Any, kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name in ("bytes", "path") for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_alike(part: _Part, column: str, kinds: dict[str, tuple[str, str]]) -> None:
    """Raises LimnerError where one file has the names of its classes and another their numbers."""
    kind = str(part.table.schema.field(column).type)
    holds = "numbers" if "int" in kind or "float" in kind or "double" in kind else "names"
    holds = "names" if column in part.classes else holds
    before, where = kinds.setdefault(column, (holds, part.name))
    if before != holds:
        unlike = f"{before} in {where} and {holds} in {part.name}"
        raise LimnerError(f"The column {column} holds {unlike}: write the same in both.")


def _rows(part: _Part, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each row's values of some columns."""
    if not columns:
        yield from ({} for _ in range(part.table.num_rows))
        return
    for batch in part.table.select(list(columns)).to_batches(_ROWS):
        for row in batch.to_pylist():
            yield {column: named(value, part.classes.get(column)) for column, value in row.items()}


def _open(values: Any, i: int, folder: Path, *_: int) -> IO[bytes]:
    """The image file in row i of a column."""
    image = values[i].as_py()
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    return open(folder / image, "rb") if isinstance(image, str) else BytesIO(image or b"")
