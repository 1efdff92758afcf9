"""One safetensors file: written by the library, read here from one open file, so that a save cannot mix two.

The reader is strict: the header's sizes, offsets and types must describe the file's bytes exactly, without a gap or
an overlap, so memory is bounded by the file's size and nothing is left unread. Format: huggingface/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.files import Damaged, sync
from limner.settings import LimnerError

LONGEST_HEADER = 10_000_000  # bytes; JSON takes some twenty times as much memory
TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


Bytes = bytearray | mmap.mmap


class Content(NamedTuple):
    """What a file holds."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]
    whole: Bytes  # the file


class Entry(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: list[int]
    start: int  # in bytes from the header's end
    stop: int


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file, flushed to the disk. Raises LimnerError for metadata that are too long to be read again."""
    if (length := sum(map(len, map(json.dumps, metadata.values())))) > LONGEST_HEADER // 2:
        raise LimnerError(
            f"{path} cannot be written: its settings, classes and sources take {length:,} bytes, and a model file "
            f"holds {LONGEST_HEADER // 2:,}: use fewer or shorter names of classes."
        )
    save_file(tensors, path, metadata)
    os.umask(mask := os.umask(0))
    path.chmod(0o666 & ~mask)  # safetensors makes files readable by their owner only
    sync(path)


def read_tensors(path: Path, mapped: bool = False) -> Content:
    """What a file holds. Raises Damaged, LimnerError for a pickle, and OSError.

    Tensors lie on the bytes that were read. ``mapped`` takes half of the time, for tensors that are soon copied: they
    change with a file that is written in place, and end the process where it becomes shorter.
    """
    with open(path, "rb") as file:
        start = file.read(9)
        _refuse_pickle(path, start)
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if mapped else _read(file)
            header = _read_header(content)
            metadata, entries = _parse_header(header, len(content) - 8 - len(header))
            tensors = {entry.name: _tensor(content, 8 + len(header), entry) for entry in entries}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Damaged(f"{path} is damaged, incomplete, or not a safetensors file ({error}).") from None
    return Content(metadata, tensors, content)


def _read(file: BufferedReader) -> bytearray:
    content = bytearray(os.fstat(file.fileno()).st_size)
    file.seek(0)
    if file.readinto(content) < len(content) or file.read(1):
        raise ValueError("it changes while it is read")
    return content


def _refuse_pickle(path: Path, start: bytes) -> None:
    # A safetensors file begins with its header's length and a brace; any other file may be a pickle.
    if start[8:] != b"{" and start.startswith((b"\x80", b"PK")):
        kind = "a pickle in a zip archive, as by torch.save" if start[:2] == b"PK" else "a pickle"
        raise LimnerError(
            f"{path} is {kind}, which can run any code when it is opened, so Limner does not open it: "
            "use a safetensors file."
        )


def _read_header(content: Bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{" or not 2 <= length <= len(content) - 8:
        raise ValueError("it does not begin with a header")
    if length > LONGEST_HEADER:
        raise ValueError(f"its header of {length:,} bytes is longer than {LONGEST_HEADER:,}")
    return bytes(content[8 : 8 + length])


def _parse_header(header: bytes, size: int) -> tuple[dict[str, str], list[Entry]]:
    """The metadata, and the tensors in the order of their ``size`` bytes. Raises ValueError."""
    table = json.loads(header.decode("utf-8"), object_pairs_hook=_without_repeats)
    if not isinstance(table, dict):
        raise ValueError("its header is not a table")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    entries = sorted((_entry(name, table[name]) for name in table), key=lambda entry: entry[3:])
    end = 0
    for entry in entries:
        if entry.start != end:
            raise ValueError(f"the bytes of {entry.name} begin at {entry.start:,} instead of {end:,}")
        end = entry.stop
    if end != size:
        raise ValueError(f"its header describes {end:,} bytes of {size:,}")
    return metadata, entries


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("its header names something twice")
    return table


def _entry(name: str, about: Any) -> Entry:
    if not isinstance(about, dict) or about.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its header does not describe {name}")
    kind, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"{name} is of the unknown type {str(kind)[:20]}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"the shape or the place of {name} is not a list of whole numbers")
    if (
        len(offsets) != 2
        or len(shape) > 64
        or offsets[1] - offsets[0] != math.prod(shape) * TYPES[kind].itemsize
    ):
        raise ValueError(f"the shape of {name} does not fit its bytes")
    return Entry(name, TYPES[kind], shape, offsets[0], offsets[1])


def _tensor(content: Bytes, at: int, entry: Entry) -> Tensor:
    """A tensor on the bytes, of which the first one's begin ``at``; only what is not aligned is copied."""
    if entry.start == entry.stop:
        return torch.empty(entry.shape, dtype=entry.dtype)
    start, count = at + entry.start, entry.stop - entry.start
    values = torch.frombuffer(content, dtype=torch.uint8, offset=start, count=count)
    values = values.clone() if start % entry.dtype.itemsize else values
    return values.view(entry.dtype).reshape(entry.shape)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and without shared memory, as the format needs them."""
    result: dict[str, Tensor] = {}
    owned: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in owned:
            tensor = tensor.clone()
        owned.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """The hash of a header's text and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))  # a flipped bit may leave half a character
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
