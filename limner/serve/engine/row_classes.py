"""Which numbers of rows a model's calls may have, measured once and kept in the folder of the cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from limner import files
from limner.fields import from_json
from limner.serve.engine.capacity import (
    LADDER,
    LIMIT,
    LIMIT_OF_GPU,
    LONGEST,
    Bench,
    Trial,
    best_class,
    classes,
    complete,
    survey,
)
from limner.serve.engine.memory import release
from limner.serve.engine.other_load import OtherLoad
from limner.serve.engine.probes import DrawingProbe, NetworkProbe, condition_of
from limner.serve.engine.rows import Rows
from limner.serve.engine.texts import LONGEST_TEXTS
from limner.settings import LimnerError, lacks_memory

FURTHER = 0.3  # seconds for further numbers of the chosen class
LONGEST_OF_LONG = 1.5  # seconds of trials with long texts, which are rare
ENOUGH_OF_LONG = 0.3  # seconds of them, if the numbers of short texts do
PATIENCE = 0.25  # seconds of one drawing; models that take longer are drawn one image at a time


@dataclass(frozen=True)
class Class:
    """Numbers of rows that give the same bits, and what names these bits."""

    counts: tuple[int, ...]
    bits: str


@dataclass(frozen=True)
class Measured:
    """What was found of a model on this machine."""

    in_bf16: bool
    cap: int
    chosen: Class
    others: tuple[Class, ...] = ()  # taken where memory does not allow the chosen one
    longer: Class | None = None  # of rows with long texts, where these differ
    busy: bool = False  # other work held the processors meanwhile, so that times may be too long

    def rows(self, batching: str, long: bool = False) -> Rows:
        if batching in ("quick", "single"):
            return Rows(tuple(range(1, self.cap + 1)))
        return Rows(((self.longer if long else None) or self.chosen).counts)

    def within(self, cap: int) -> tuple[Class, Rows] | None:
        """The class and its numbers of at most ``cap`` rows: the chosen one, else the largest. None: there is none."""
        limited = [(one, Rows(one.counts).limited(cap)) for one in (self.chosen, *self.others)]
        fitting = [(one, rows) for one, rows in limited if rows]
        if fitting and fitting[0][0] is not self.chosen:
            return max(fitting, key=lambda pair: pair[1].most)
        return fitting[0] if fitting else None


def machine(device: torch.device) -> dict[str, Any]:
    """What bits depend on besides the model, its precision and the number of rows."""
    processor: Any = dict(getattr(torch.cpu, "get_capabilities", dict)())
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    return {
        "torch": torch.__version__, "device": device.type, "threads": torch.get_num_threads(),
        "processor": processor,
    }  # fmt: skip


def short_hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(model: Any, flies: bool, in_bf16: bool, before: Measured | None = None) -> Measured:
    """Try calls of the model, in the context in which it runs. Raises what even one row raises.

    ``before`` was found on a busy machine: its cap does not fall, and its bits are left for much faster ones alone.
    """
    limit, other = LIMIT if model.device.type == "cpu" else LIMIT_OF_GPU, OtherLoad()
    found = (
        find_for_calls(model, in_bf16, limit, before)
        if flies
        else find_for_drawings(model, in_bf16, limit, before)
    )
    return replace(found, busy=other.is_busy(torch.get_num_threads()))


def find_for_drawings(model: Any, in_bf16: bool, limit: int, before: Measured | None) -> Measured:
    """Of images that are drawn together."""
    bench = Bench(DrawingProbe(model).run, 2 * limit, model.device)
    bench.run([0])
    start = bench.clock()
    bench.run([0])
    if bench.clock() - start > PATIENCE:
        return Measured(in_bf16, 1, Class((1,), "alone"))
    return sort(bench, in_bf16, limit, before)


def find_for_calls(model: Any, in_bf16: bool, limit: int, before: Measured | None) -> Measured:
    """Of rows with short texts, and with long ones where the model reads such."""
    pool = limit + limit // 2
    found = sort(Bench(NetworkProbe(model, pool).run, pool, model.device), in_bf16, limit, before)
    if model.embed.short == model.embed.length:
        return found
    longest = max(LONGEST_TEXTS, key=lambda text: model.embed(condition_of(model, 0, text)).tokens.shape[1])
    bench = Bench(NetworkProbe(model, pool, longest).run, pool, model.device)
    longer, known = sort_long(bench, found), before and before.longer
    if known and before and before.chosen.bits == found.chosen.bits and known.bits != longer.bits:
        longer = known
    return replace(found, longer=longer)


def sort_long(bench: Bench, found: Measured) -> Class:
    """The numbers of the chosen class where they agree with long texts too, which are rare; else the best class."""
    trials: list[Trial] = []
    start = bench.clock()
    try:
        for count in (count for count in found.chosen.counts if count in LADDER):
            if trials and bench.clock() - start > ENOUGH_OF_LONG:
                break
            trials.append(bench.trial(count))
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        release(bench.device)
    groups = classes(trials)
    if len(groups) == 1 and len(groups[0]) == len(trials):
        return named(groups[0])
    return sort(bench, found.in_bf16, found.cap, further=0.0, budget=LONGEST_OF_LONG).chosen


def sort(
    bench: Bench, in_bf16: bool, limit: int, before: Measured | None = None, further: float = FURTHER,
    budget: float = LONGEST,
) -> Measured:  # fmt: skip
    """Numbers of rows by their bits, within so many seconds, and ``further`` ones for the chosen class."""
    trials = survey(bench, limit, budget, before.cap if before else 1)
    cap, groups = trials[-1].count, classes(trials)
    if not groups:  # no number of rows gives a row the same bits everywhere, except perhaps one alone
        return Measured(in_bf16, cap, Class((1,), "unknown"))
    usual = next((group for group in groups if before and named(group).bits == before.chosen.bits), None)
    best = complete(bench, best_class(groups, usual), cap, further)
    known = {trial.count for trial in best}
    others = tuple(named(group) for group in groups if group[0].count not in known)
    return Measured(in_bf16, cap, named(best), others)


def named(group: Sequence[Trial]) -> Class:
    """A class by its numbers and the bits of its first row."""
    bits, hashed = group[0].bits or {}, hashlib.sha256()
    for tensor in bits[0]:
        if tensor is not None:
            hashed.update(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return Class(tuple(trial.count for trial in group), hashed.hexdigest()[:16])


# ---- on disk


def place(key: dict[str, Any]) -> Path:
    return files.cache_folder() / "rows" / f"{short_hash(key)}.json"


def read(key: dict[str, Any]) -> Measured | None:
    """What was found before; None where there is nothing, or a damaged file, so that it is found again."""
    try:
        content = files.read_json(place(key))
        found = from_json(Measured, content.get("found"), "found")
    except (OSError, LimnerError):
        return None
    counts = [one.counts for one in (found.chosen, *found.others, found.longer) if one]
    sound = all(c and c[0] >= 1 and all(a < b for a, b in pairwise(c)) for c in counts)
    return found if sound and found.cap >= 1 and content.get("key") == json.loads(json.dumps(key)) else None


def write(key: dict[str, Any], found: Measured) -> None:
    """Keep it; a folder that cannot be written to only means that it is found again next time."""
    with contextlib.suppress(LimnerError):
        files.write_json(place(key), {"key": key, "found": asdict(found)})
