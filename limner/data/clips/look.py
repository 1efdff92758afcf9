"""What an item of a data set of clips holds, decoded once and not kept."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limner.data.clips import reels
from limner.data.clips.notes import no_clips, rate_of, short_notes, trait_notes
from limner.data.clips.reels import reel
from limner.data.clips.times import Cut
from limner.data.clips.write import Taken, drawn_clip, taken_of, too_short
from limner.data.images import decode, deep
from limner.data.images.header import Header
from limner.data.items import Item, Problem
from limner.data.write_rows import Plan, Row

_SIDE = 64  # pixels at which it is decoded


class _Nowhere(io.BytesIO):
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


@dataclass
class Films:
    """What was found of the items of a data set of clips."""

    rows: list[Row] = field(default_factory=list)
    short: list[Problem] = field(default_factory=list)
    cut: list[Problem] = field(default_factory=list)
    traits: dict[str, list[str]] = field(default_factory=dict)

    def add(self, item: Item, taken: Taken, cut: Cut) -> None:
        self.rows += [row for row in taken.clips if row.stride]
        self.short += [] if taken.clips else [Problem(item.name, too_short(taken.ticks, cut))]
        self.cut += [Problem(item.name, taken.lost)] if taken.lost else []
        for trait in taken.traits:
            self.traits.setdefault(trait, []).append(item.name)

    def problems(self) -> list[Problem]:
        return self.short + self.cut

    @property
    def rates(self) -> dict[str, int]:
        """How many clips have each rate, the most common first."""
        return dict(Counter(f"{row.rate:.4g}" for row in self.rows if row.rate).most_common())

    def notes(self, of: int) -> list[str]:
        return trait_notes(self.traits, of) + short_notes(self.short, of) + rate_of(self.rows)[1]

    def nothing(self) -> str:
        return no_clips(self.short)


def look(cut: Cut, fit: str, hdr: str, item: Item) -> tuple[Header, bytes, Taken]:
    """The header of an item, a digest of its content (b"" where it is drawn), and its clips. Raises as `reel`."""
    plan = Plan(_SIDE, _SIDE, 1, 4, np.dtype(np.uint16), (0, 0, 0), fit, "", deep.Scale(), "exact", cut)
    if item.clip is not None:
        return decode.look(item.image(_SIDE, _SIDE), fit), b"", drawn_clip(_Nowhere(), plan, cut, item)
    header = reels.header_of(item, hdr)
    with reel(item, plan.form, hdr) as found:
        taken = taken_of(_Nowhere(), plan, cut, item, found)
    return header, _digest(item), taken


def _digest(item: Item) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for opener in item.pictures or (item.image,):
        source: Any = opener()  # type: ignore[call-arg]
        with source:
            while block := source.read(2**20):
                digest.update(block)
    return digest.digest()
