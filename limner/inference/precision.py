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
# Seconds of the first pair, from which two are timed after it, and from which it alone decides, for this time.
LARGE, HUGE = 2.0, 20.0
_of_this_process: dict[tuple[Path, str], bool] = {}  # what the timed pairs do not agree about


def has_bf16() -> bool:
    """Whether this processor has instructions for bf16, by which it may be faster than float32 or slower."""
    cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch has none
    return any(value for name, value in cpu.items() if "bf16" in name)


def choose_bf16(
    device: torch.device, precision: str, network: str, run: Callable[[bool], object],
    clock: Callable[[], float] = time.process_time,
) -> bool:  # fmt: skip
    """Whether a network runs in bf16: as ``precision`` says, and for auto on a GPU, or where it is measured as faster.

    ``run(in_bf16)`` is what is timed, by the processor time of this process, which other work changes least: in turns,
    and the shortest times count. ``network`` names the network and the batch: what was found for it on this processor
    is kept in the folder of the cache where all timed pairs agree, and otherwise to the end of this process.
    """
    if precision != "auto" or device.type != "cpu":
        return precision != "float32"
    if not has_bf16():
        return False
    path = files.cache_folder() / "precision.json"
    key = f"{torch.cpu.get_capabilities().get('cpu_name', '')}, torch {torch.__version__}: {network}"
    if isinstance(found := _measured(path).get(key, _of_this_process.get((path, key))), bool):
        return found
    start = clock()
    first = _pair(run, clock)  # also makes what the others find
    took, start = clock() - start, clock()
    if took > HUGE:
        return _of_this_process.setdefault((path, key), _faster(*first))
    pairs = list[tuple[float, float]]()
    while len(pairs) < (5 if took <= LARGE else 2) or (len(pairs) < 8 and clock() - start < MEASURING):
        pairs.append(_pair(run, clock))
    half, full = zip(*pairs, strict=True)
    chosen = _faster(min(half), min(full))
    if all(_faster(*pair) == chosen for pair in pairs):
        with contextlib.suppress(LimnerError):  # a folder that cannot be written to: measured again next time
            files.write_text(path, json.dumps(_measured(path) | {key: chosen}, indent=1))
    else:
        _of_this_process[path, key] = chosen
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


def _faster(half: float, full: float) -> bool:
    return full >= GAIN * half


def _pair(run: Callable[[bool], object], clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds in bf16 and in float32."""
    times = []
    for in_bf16 in (True, False):
        start = clock()
        run(in_bf16)
        times.append(clock() - start)
    return times[0], times[1]
