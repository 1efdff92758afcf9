"""The frames of a packing of clips, each written once, and where each clip lies in them."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
from rich.console import Console

from limner.data.clips.names import clip_name
from limner.data.clips.reels import Frame, Reel, reel
from limner.data.clips.times import Cut, Spacing, at_ticks
from limner.data.images import decode
from limner.data.items import Item, Problem
from limner.data.parallel import in_parallel
from limner.data.write_rows import Plan, Row, Written, uses
from limner.progress import bar

_HELD = 2**23  # bytes of the frames of one item that are held in memory; more go to a file
DRAWN_RATE = 8.0  # frames a second of clips that Limner draws, unless another is asked for


@dataclass(frozen=True)
class Taken:
    """What the clips of one item have."""

    frames: IO[bytes]  # the rows, one after another
    count: int  # of them
    clips: list[Row]  # whose ``first`` counts from the item's own first row
    ticks: int
    channels: int  # in use
    traits: frozenset[str] = frozenset()
    lost: str = ""  # what could not be read


def write_clips(
    scratch: Path, items: Sequence[Sequence[Item]], plan: Plan, hdr: str, say: Console
) -> Written:
    """Writes the frames of each source's clips; see ``Written``. ``hdr`` is that of ``DataOptions``."""
    written = Written([[] for _ in items])
    every = list(chain.from_iterable(items))
    origins = np.repeat(np.arange(len(items)), [len(some) for some in items]).tolist()
    take = partial(_take, scratch, plan, hdr)
    with open(scratch / "rows", "wb") as file, bar("packing", say.quiet) as watch:
        for origin, (item, taken) in zip(origins, in_parallel(take, every, watch, group=1), strict=True):
            if isinstance(taken, Problem):
                written.bad.append(taken)
                continue
            with taken.frames:
                taken.frames.seek(0)
                shutil.copyfileobj(taken.frames, file, 2**20)
            if not taken.clips:
                written.short.append(Problem(item.name, too_short(taken.ticks, plan.cut)))
            rows = [dataclasses.replace(clip, first=clip.first + written.frames) for clip in taken.clips]
            written.rows[origin] += rows
            written.frames += taken.count
            written.used[taken.channels] += 1
            written.cut += [Problem(item.name, taken.lost)] if taken.lost else []
            for trait in taken.traits:
                written.traits.setdefault(trait, []).append(item.name)
    return written


def too_short(ticks: int, cut: Cut | None) -> str:
    """Why a film has no clip."""
    span = cut.span if cut else 1
    frames = f"{ticks:,} frame{'s' if ticks != 1 else ''}"
    at = f" at {cut.rate:g} a second" if cut and cut.rate else ""
    return f"it has {frames}{at}, fewer than the {span:,} of a clip"


def _take(scratch: Path, plan: Plan, hdr: str, item: Item) -> Taken:
    """The frames of one item that its clips have. Raises what reading it raises."""
    assert plan.cut is not None
    file = tempfile.SpooledTemporaryFile(_HELD, dir=str(scratch))  # noqa: SIM115 (closed by who copies it)
    try:
        if item.clip is not None:
            return drawn_clip(file, plan, plan.cut, item)
        with reel(item, plan.form, hdr) as found:
            return taken_of(file, plan, plan.cut, item, found)
    except BaseException:
        file.close()
        raise


def drawn_clip(file: IO[bytes], plan: Plan, cut: Cut, item: Item) -> Taken:
    """A clip that Limner draws."""
    assert item.clip is not None
    rate = (cut.rate or DRAWN_RATE) / cut.stride
    pixels = item.clip(plan.height, plan.width, cut.frames, rate)
    channels = uses(pixels)
    file.write(_rows(pixels, plan))
    row = Row(dataclasses.replace(item, name=clip_name(item.name, 0)), (plan.height, plan.width), 0, 1, rate)
    return Taken(file, len(pixels), [row], len(pixels), channels)


def taken_of(file: IO[bytes], plan: Plan, cut: Cut, item: Item, found: Reel) -> Taken:
    spacing = Spacing(found.rounding)
    channels, ticks, count = 1, 0, 0
    before: tuple[Frame, bytes] | None = None
    for frame in at_ticks(spacing.watch(found.frames), cut.rate if found.timed else None):
        if found.still or cut.keeps(ticks):
            if before is None or before[0] is not frame:  # one frame may fill many ticks
                channels = max(channels, uses(frame.pixels))
                before = frame, _rows(frame.pixels[None], plan)
            file.write(before[1])
            count += 1
        ticks += 1
    if found.still:
        return Taken(file, 1, [Row(item, found.size)], 1, channels, frozenset({"still"}))
    firsts, stride = cut.places(ticks)
    used = firsts[-1] + (cut.frames - 1) * stride + 1 if firsts else 0
    file.truncate(used * len(before[1]) if before else 0)
    rate = cut.rate or _own_rate(found, spacing)
    rows = [
        Row(
            dataclasses.replace(item, name=clip_name(item.name, start)),
            found.size, first, stride, rate and rate / cut.stride,
        )
        for start, first in zip(cut.starts(ticks), firsts, strict=True)
    ]  # fmt: skip
    traits = frozenset(found.traits | _of_times(found, spacing, cut))
    return Taken(file, used, rows, ticks, channels, traits, found.lost)


def _own_rate(found: Reel, spacing: Spacing) -> float | None:
    """Frames a second of a reel that was read: as its file says, unless its times are others."""
    if not found.timed or spacing.rate is None:
        return None
    stated = found.rate or spacing.rate
    return stated if abs(stated / spacing.rate - 1) < 0.02 else spacing.rate


def _of_times(found: Reel, spacing: Spacing, cut: Cut) -> set[str]:
    """What the times of a reel's frames say: traits."""
    if not found.timed:
        return {"untimed"} if cut.rate else set()
    traits = {"uneven"} if spacing.uneven and not cut.rate else set()
    if cut.rate and spacing.rate and cut.rate > 1.01 * spacing.rate:
        traits.add("slower")
    return traits


def _rows(pixels: np.ndarray, plan: Plan) -> bytes:
    """[T, h, w, C] as the bytes of rows as planned."""
    pixels = decode.as_channels(pixels, plan.channels, plan.background, plan.dtype)
    return decode.padded(pixels, plan.height, plan.width, plan.background).tobytes()
