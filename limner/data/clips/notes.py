"""What was done with films, in sentences for the person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from limner.data.items import Problem
from limner.data.write_rows import Row, Written
from limner.settings import LimnerError

# What is said of films and animations that have a trait: of several, and of one.
TRAITS = {
    "sound": ("have sound, which is ignored", "has sound, which is ignored"),
    "turned": ("are turned upright, as their header says", "is turned upright, as its header says"),
    "oblong": (
        "have pixels that are not square, and are shown as wide as their header says",
        "has pixels that are not square, and is shown as wide as its header says",
    ),
    "interlaced": (
        "are interlaced, and their lines are joined to whole frames",
        "is interlaced, and its lines are joined to whole frames",
    ),
    "no delay": (
        "have frames without a delay, which are shown for 100 ms, as browsers do",
        "has frames without a delay, which are shown for 100 ms, as browsers do",
    ),
    "uneven": (
        "have a variable rate (--data.rate takes clips at even times)",
        "has a variable rate (--data.rate takes clips at even times)",
    ),
    "slower": (
        "have fewer frames a second than --data.rate, so frames are repeated",
        "has fewer frames a second than --data.rate, so frames are repeated",
    ),
    "untimed": (
        "are numbered images, which have no times: each counts as a frame at --data.rate",
        "is of numbered images, which have no times: each counts as a frame at --data.rate",
    ),
    "cut": (
        "are cut or damaged, and what can be read of them is used",
        "is cut or damaged, and what can be read of it is used",
    ),
    "still": (
        "are stills: of each clip of one, one frame counts",
        "is a still: of its clip, one frame counts",
    ),
}


def trait_notes(traits: Mapping[str, Sequence[str]], of: int) -> list[str]:
    """A sentence for each trait of some of ``of`` films, with the first that has it."""
    notes = []
    for trait, (several, one) in TRAITS.items():
        if names := traits.get(trait):
            such = f", {'such as ' if len(names) > 1 else ''}{names[0]!r},"
            notes.append(f"{len(names):,} of {of:,}{such} {one if len(names) == 1 else several}.")
    return notes


_CHANGE = "choose a smaller --data.frames, or another --data.stride or --data.rate"


def short_notes(short: Sequence[Problem], of: int) -> list[str]:
    """What is said of films without a clip."""
    if not short:
        return []
    are = f"{len(short):,} of {of:,} are" if len(short) > 1 else f"1 of {of:,} is"
    return [f"{are} too short and left out, {_such(short)}: {_CHANGE}."]


def no_clips(short: Sequence[Problem]) -> str:
    """The sentence where nothing has a clip."""
    if short:
        return f"No film is as long as a clip, {_such(short)}: {_CHANGE}."
    return (
        "Nothing here moves: clips are films, GIFs, animated WebP or PNG, or folders of numbered images; for "
        "stills leave out --data.frames and choose a family of images."
    )


def _such(short: Sequence[Problem]) -> str:
    return f"such as {short[0].path!r} ({short[0].reason})"


def clips_entries(written: Written, of: int) -> tuple[dict[str, Any], list[str]]:
    """Where the clips of ``of`` films lie and their rate, as kept in an index, and sentences. Raises LimnerError."""
    rows = list(chain.from_iterable(written.rows))
    notes = trait_notes(written.traits, of)
    notes += short_notes(written.short, of)
    if all(row.stride == 0 for row in rows):
        raise LimnerError(no_clips(written.short))
    rate, about = rate_of(rows)
    clips = {"first": [row.first for row in rows], "stride": [row.stride for row in rows]}
    return {"clips": clips, "rate": rate}, notes + about


def rate_of(rows: Iterable[Row]) -> tuple[float | None, list[str]]:
    """The rate of most clips, and a sentence where they have several."""
    rates = Counter(row.rate for row in rows if row.rate)
    if not rates:
        return None, []
    most, low, high = rates.most_common(1)[0][0], min(rates), max(rates)
    if high <= 1.05 * low:
        return most, []
    return most, [
        f"The clips have {low:.4g} to {high:.4g} frames a second, most of them {most:.4g}: --data.rate makes all alike."
    ]
