"""Whether a network runs in bf16: measured once for each network and batch, and kept in the folder of the cache.

An AMD EPYC with AVX512-BF16 convolves in half the time of float32, an Intel Xeon that also has it in twice; one with
AMX gains at a batch of 32 and loses at a single image. No name of a processor tells this.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from limner import files
from limner.settings import LimnerError

GAIN = 1.1  # float32 must take so many times as long as bf16
MEASURING = 0.5  # seconds after which few further pairs are timed; two beside other work have misled


def has_bf16() -> bool:
    """Whether this processor has instructions for bf16, by which it may be faster than float32 or slower."""
    cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch has none
    return any(value for name, value in cpu.items() if "bf16" in name)


def choose_bf16(
    device: torch.device, precision: str, network: str, run: Callable[[bool], object],
    clock: Callable[[], float] = time.perf_counter,
) -> bool:  # fmt: skip
    """Whether a network runs in bf16: as ``precision`` says, and for auto on a GPU, or where it is measured as faster.

    ``run(in_bf16)`` is what is timed: in turns, since other work slows both, and the shortest times count. ``network``
    names the network and the batch: what was found for it on this processor is kept in the folder of the cache.
    """
    if precision != "auto" or device.type != "cpu":
        return precision != "float32"
    if not has_bf16():
        return False
    path = files.cache_folder() / "bf16.json"
    key = f"{torch.cpu.get_capabilities().get('cpu_name', '')}, torch {torch.__version__}: {network}"
    if isinstance(found := _measured(path).get(key), bool):
        return found
    start, pairs = clock(), list[dict[bool, float]]()
    while len(pairs) < 6 or (len(pairs) < 9 and clock() - start < MEASURING):
        pairs.append({in_bf16: _seconds(run, in_bf16, clock) for in_bf16 in (True, False)})
        if len(pairs) == 1 and clock() - start > 4 * MEASURING:
            break
    pairs = pairs[1:] or pairs  # the first also makes what the others find
    chosen = min(pair[False] for pair in pairs) >= GAIN * min(pair[True] for pair in pairs)
    with contextlib.suppress(LimnerError):  # a folder that cannot be written to: measured again next time
        files.write_text(path, json.dumps(_measured(path) | {key: chosen}, indent=1))
    return chosen


def network_name(family: str, config: object, batch: int, use: str) -> str:
    """What names a network and about how many images it is given at once, for ``choose_bf16``."""
    digest = hashlib.sha256(repr(config).encode()).hexdigest()[:16]
    return f"{use} {family} {digest}, batch {1 << (batch - 1).bit_length()}"


def _measured(path: Path) -> dict[str, Any]:
    """What was found before; nothing where the file is missing or damaged, so that it is measured again."""
    try:
        found = path.stat()
        return _read(path, (found.st_mtime_ns, found.st_size, found.st_ino))
    except (OSError, files.Damaged):
        return {}


@functools.lru_cache(1)
def _read(path: Path, written: tuple[int, ...]) -> dict[str, Any]:
    """The file, once for each time that it was written: a network asks before each batch."""
    return files.read_json(path)


def _seconds(run: Callable[[bool], object], in_bf16: bool, clock: Callable[[], float]) -> float:
    start = clock()
    run(in_bf16)
    return clock() - start
