"""Tables of images: parquet files, and data sets of the Hugging Face hub named by the person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from limner.data.metadata import one_line
from limner.data.sources import LABEL_COLUMNS, TEXT_COLUMNS, Item, Listing, Source, stamp
from limner.settings import LimnerError, need


def parquet(text: str, paths: Sequence[Path]) -> Source:
    """Parquet files with a column of images, as `datasets` writes them."""
    stamps = [(p.name, *stamp(p.stat())) for p in paths]

    def load(datasets: Any) -> Any:
        import pyarrow.parquet as pq

        try:
            tables = [pq.read_table(p, memory_map=True) for p in paths]
        except (OSError, ValueError) as error:  # pyarrow's errors are these
            raise LimnerError(f"{text} cannot be read as parquet ({error}): write it again.") from None
        return datasets.concatenate_datasets([datasets.Dataset(t) for t in tables])

    return Source(text, ["parquet", stamps], partial(_listing, text, load))


def hub(text: str) -> Source:
    """'hf:owner/name' or 'hf:owner/name:config': the train split, or the first one there is."""
    name, _, config = text.removeprefix("hf:").partition(":")

    def load(datasets: Any) -> Any:
        try:
            splits = datasets.load_dataset(name, config or None)
        except Exception as error:  # the hub client raises its own kinds, which change between versions
            reason = " ".join(str(error).split())[:300]
            raise LimnerError(f"{text} cannot be loaded. {reason}") from None
        return splits["train"] if "train" in splits else next(iter(splits.values()))

    return Source(text, ["hub", name, config], partial(_listing, text, load))


def _listing(text: str, load: Callable[[Any], Any]) -> Listing:
    datasets = need("datasets", "Parquet and hf: sources need the data extra", "data")
    table = load(datasets)
    features = table.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    column = next((name for name in (*images, "image", "img", "jpg", "png") if name in features), None)
    if column is None:
        raise LimnerError(f"{text} has no column of images; its columns are {', '.join(features)}.")
    table = table.cast_column(column, datasets.Image(decode=False))
    numbered = {n: kind.names for n, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    labels = next((n for n in (*LABEL_COLUMNS, *numbered) if n in features), None)
    texts = next((n for n in TEXT_COLUMNS if n in features), None)

    def opener(i: int, *_: int) -> IO[bytes]:
        image = table[i][column]
        if image is None:
            return BytesIO()
        return BytesIO(image["bytes"]) if image["bytes"] is not None else open(image["path"], "rb")

    of_label = [_label(v, numbered.get(labels)) for v in table[labels]] if labels else [None] * len(table)
    of_text = [one_line(v) for v in table[texts]] if texts else [None] * len(table)
    rows = enumerate(zip(of_label, of_text, strict=True))
    return Listing([Item(f"{column}/{i}", partial(opener, i), *texts) for i, texts in rows])


def _label(value: Any, names: Sequence[str] | None) -> str | None:
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return one_line(value)
