"""What was done with films, in sentences for the person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from limner.data.images.header import Header
from limner.data.items import Problem
from limner.data.write_rows import Row, Written
from limner.settings import LimnerError

# Of films and animations: what is said of those that have it, after their number.
TRAITS = {
    "sound": "have sound, which is ignored",
    "turned": "are turned upright, as their header says",
    "oblong": "have pixels that are not square: they are shown as wide as their header says",
    "interlaced": "are interlaced: their lines are joined to whole frames",
    "no delay": "have frames without a delay, which are shown for 100 ms, as browsers do",
    "uneven": "show frames for unlike times: --data.rate takes clips at even times",
    "slower": "have fewer frames a second than --data.rate, so frames are repeated",
    "untimed": "are numbered images, which have no times: each counts as one frame at --data.rate",
    "cut": "are cut or damaged: fewer frames were read than they should have",
    "still": "are stills: each is a clip of which one frame counts",
}


def trait_notes(traits: Mapping[str, int], of: int) -> list[str]:
    """A sentence for each trait of so many of ``of`` films."""
    verbs = {"have ": "has ", "are ": "is ", "show ": "shows "}
    notes = []
    for trait, said in TRAITS.items():
        if count := traits.get(trait, 0):
            if count == 1:
                plural, singular = next(pair for pair in verbs.items() if said.startswith(pair[0]))
                said = singular + said.removeprefix(plural)
            notes.append(f"{count:,} of {of:,} {said}.")
    return notes


def header_traits(headers: Mapping[Header, int]) -> Counter[str]:
    found = Counter[str]()
    for header, count in headers.items():
        for trait in header.traits:
            found[trait] += count
    return found


def short_notes(short: Sequence[Problem], of: int, clips: int) -> list[str]:
    """What is said of films without a clip. Raises LimnerError where no film has one."""
    if not short:
        return []
    example = f"such as {short[0].path!r} ({short[0].reason})"
    change = "choose a smaller --data.frames, or another --data.stride or --data.rate"
    if not clips:
        raise LimnerError(f"No film is as long as a clip, {example}: {change}.")
    are = f"{len(short):,} of {of:,} are" if len(short) > 1 else f"1 of {of:,} is"
    return [f"{are} too short and left out, {example}: {change}."]


def clips_entries(
    written: Written, headers: Mapping[Header, int], of: int
) -> tuple[dict[str, Any], list[str]]:
    """Where the clips of ``of`` films lie and their rate, as kept in an index, and sentences. Raises LimnerError."""
    rows = list(chain.from_iterable(written.rows))
    notes = trait_notes(header_traits(headers) + written.traits, of)
    notes += short_notes(written.short, of, len(rows))
    refuse_stills(rows)
    rate, about = rate_of(rows)
    clips = {"first": [row.first for row in rows], "stride": [row.stride for row in rows]}
    return {"clips": clips, "rate": rate}, notes + about


def refuse_stills(rows: Iterable[Row]) -> None:
    """Raises LimnerError where nothing moves."""
    if all(row.stride == 0 for row in rows):
        raise LimnerError(
            "Nothing here moves: clips are films, GIFs, animated WebP or PNG, or folders of numbered images; for "
            "stills leave out --data.frames and choose a family of images."
        )


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
