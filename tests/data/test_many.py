"""What many images take: memory that hardly grows with them, and no time that grows faster than they do."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

CHECK = "from limner.data import check\nassert check(sys.argv[1], progress=False).images == int(sys.argv[2])"
PACK = """from limner.data import open_data
data = open_data(sys.argv[1], progress=False)
assert len(data) == int(sys.argv[2])"""
SPLIT = f"{PACK}\ntraining, held_out = data.split(0.05)\nassert len(training) + len(held_out) == len(data)"
PEAK = """
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")), time.process_time() - start)
"""


def fill(folder: Path, count: int) -> Path:
    """PNGs of 16x16, no two alike, faster than Pillow writes them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    folder.mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    for i, pixels in enumerate(coarse):
        rows = pixels.repeat(4, 0).repeat(4, 1).reshape(16, 48)
        content = zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes(), 1)
        data = header + chunk(b"IDAT", content) + chunk(b"IEND", b"")
        (folder / f"image_{i:06d}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return folder


def cost(work: str, folder: Path, count: int, cache: Path) -> tuple[int, float]:
    """Peak memory in bytes and seconds of processor time of some work on a folder of ``count`` images."""
    code = f"import sys, time, torch\nstart = time.process_time()\n{work}{PEAK}"
    command = [sys.executable, "-c", code, folder, str(count)]
    variables = {**os.environ, "LIMNER_CACHE": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    kib, seconds = done.stdout.split()
    return 1024 * int(kib), float(seconds)


@pytest.mark.slow  # a minute
def test_many_images_take_little_memory_each_and_no_more_time_each(tmp_path: Path) -> None:
    few, many = 10_000, 30_000
    folders = {count: fill(tmp_path / str(count), count) for count in (few, many)}
    # The split's search for twins still fills its buffers at these numbers: of 300,000 images each takes 1,300 bytes.
    for work, most in (CHECK, 900), (PACK, 2_000), (SPLIT, 5_000):
        (less, quick), (more, slow) = (
            cost(work, folder, count, tmp_path / "cache") for count, folder in folders.items()
        )
        assert (more - less) / (many - few) < most  # bytes for each image
        assert slow < 1.5 * quick * many / few
