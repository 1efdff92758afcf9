"""Rows of a packed array, read from its opened file; every block of the file is checked before it is used.

Files are read, not mapped: a mapped file that somebody cuts ends the process with SIGBUS.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from limner.data.parallel import cores
from limner.files import Damaged

BLOCK = 2**20  # bytes of the file that have one digest
_IN_MEMORY = 2**28  # bytes of a file that is checked when it is opened, and held in memory once it is used
_ATTEMPTS = 3  # to read rows of a file that changes meanwhile
_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))


class BlockDigests:
    """Digests of the blocks of a file whose bytes are passed in order."""

    def __init__(self) -> None:
        self._digests: list[str] = []
        self._current, self._filled = _hash(), 0

    def update(self, data: bytes | memoryview) -> None:
        rest = memoryview(data).cast("B")
        while len(rest):
            part, rest = rest[: BLOCK - self._filled], rest[BLOCK - self._filled :]
            self._current.update(part)
            self._filled += len(part)
            if self._filled == BLOCK:
                self._next()

    def finish(self) -> list[str]:
        if self._filled:
            self._next()
        return self._digests

    def _next(self) -> None:
        self._digests.append(self._current.hexdigest())
        self._current, self._filled = _hash(), 0


class PackedArray:
    """An array.npy [N, ...] of uint8 or uint16 whose blocks have known digests; raises Damaged wherever they differ.

    A small one is checked when it is opened, and held in memory from its first use on, so that changes to the
    file no longer matter. Of a large one each block is checked before its first use, and again when the file's
    size or times change. Whoever renames another file into its place does not disturb it.
    """

    def __init__(self, path: Path, digests: Sequence[str]):
        self.path, self._digests = path, digests
        try:
            self._file = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            self._status = self._stat()
            self._bytes = self._status[0]
            if len(digests) != -(-self._bytes // BLOCK):
                raise self._damaged("array.npy was cut or grew")
            start = io.BytesIO(self._block(0) if digests else b"")
            self.shape, self.dtype, self._offset = _read_header(start)
        except OSError as error:
            raise self._damaged(f"array.npy: {error.strerror}") from None
        except ValueError as error:
            raise self._damaged(str(error)) from None
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self._offset + len(self) * self._row != self._bytes:
            raise self._damaged("array.npy was cut or grew")
        self._checked = np.zeros(len(digests), bool)
        self._whole: np.ndarray | None = None
        if self._bytes <= _IN_MEMORY:
            for _ in self._blocks():
                pass

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """[B, ...], or [B, T, ...] of indices [B, T]: a copy of the rows at these indices. Raises Damaged."""
        try:
            if self._bytes > _IN_MEMORY:
                return self._read(rows.reshape(-1)).reshape(*rows.shape, *self.shape[1:])
            if self._whole is None:
                self._whole = self._read_all()
            return self._whole[rows]
        except Damaged as error:
            self._discard()
            again = "run the same command again, a training with --resume, to pack it again"
            raise Damaged(f"{error} It was in use: {again}.") from None

    def _read_all(self) -> np.ndarray:
        content = np.empty(self._bytes, np.uint8)
        at = 0
        for block in self._blocks():
            content[at : at + len(block)] = np.frombuffer(block, np.uint8)
            at += len(block)
        content.setflags(write=False)
        return content[self._offset :].view(self.dtype).reshape(self.shape)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        starts = self._offset + np.asarray(rows, np.int64) * self._row
        for _ in range(_ATTEMPTS):
            self._check(starts)
            parts = [self._pread(self._row, start) for start in starts.tolist()]
            status = self._stat()
            if status == self._status:  # what was read is what was checked
                return np.frombuffer(bytearray().join(parts), self.dtype).reshape(-1, *self.shape[1:])
            self._status = status
            self._checked[:] = False
        raise self._damaged("another program writes to array.npy")

    def _check(self, starts: np.ndarray) -> None:
        """Check the blocks of the rows that start at these bytes, unless they were checked before."""
        first, last = starts // BLOCK, (starts + self._row - 1) // BLOCK
        if self._checked[first].all() and self._checked[last].all() and self._row <= BLOCK:
            return
        ends = zip(first.tolist(), last.tolist(), strict=True)
        touched = sorted({block for a, b in ends for block in range(a, b + 1)})
        new = [block for block in touched if not self._checked[block]]
        with ThreadPoolExecutor(cores()) as pool:
            for block, _ in zip(new, pool.map(self._block, new), strict=True):
                self._checked[block] = True

    def _blocks(self) -> Iterator[bytes]:
        """The content of every block, checked."""
        with ThreadPoolExecutor(cores()) as pool:
            for start in range(0, len(self._digests), 8):  # so that few are in memory at a time
                yield from pool.map(self._block, range(start, min(start + 8, len(self._digests))))

    def _block(self, number: int) -> bytes:
        content = self._pread(min(BLOCK, self._bytes - number * BLOCK), number * BLOCK)
        if _hash(content).hexdigest() != self._digests[number]:
            raise self._damaged(f"array.npy has other bytes near {number * BLOCK:,} than were packed")
        return content

    def _pread(self, count: int, start: int) -> bytes:
        try:
            content = os.pread(self._file, count, start)
        except OSError as error:
            raise self._damaged(f"array.npy: {error.strerror}") from None
        if len(content) != count:
            raise self._damaged("array.npy was cut")
        return content

    def _stat(self) -> tuple[int, int, int]:
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _discard(self) -> None:
        """Make the next start pack again, unless another process has done so already."""
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                (self.path.parent / "index.json").unlink()

    def _damaged(self, reason: str) -> Damaged:
        return Damaged(f"The packed data in {self.path.parent} is damaged: {reason}.")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
    """The shape, the type and the offset of the values in an array.npy. Raises ValueError."""
    try:
        version = np.lib.format.read_magic(file)
        shape, transposed, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError("array.npy has another header than was packed") from None
    if version != (1, 0) or transposed or dtype not in _DTYPES or len(shape) < 4 or min(shape) < 1:
        raise ValueError("array.npy has another header than was packed")
    return shape, dtype, file.tell()


def _hash(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=16)
