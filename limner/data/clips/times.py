"""Which frames of a film a clip has: by time stamps, never by counting frames."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from limner.data.images.limits import Unusable
from limner.settings import DataOptions

T = TypeVar("T")
_NEAR = 1e-9  # seconds: readers round time stamps in unlike ways
_MOST = 1_000  # ticks in a row that one frame may fill; more of them come of damaged time stamps


@dataclass(frozen=True)
class Cut:
    """How clips are cut from the ticks of a film: clip s has ticks s, s + stride, ...; one starts every ``step``.

    Only ticks of clips are kept. Clips that do not overlap lie one after another; overlapping ones share ticks.
    """

    frames: int  # a clip
    stride: int = 1
    step: int = 0  # 0: the ticks that a clip spans, so clips do not overlap
    rate: float | None = None  # ticks a second; None: each frame is a tick

    @property
    def span(self) -> int:
        """Ticks from the first of a clip to its last, both counted."""
        return (self.frames - 1) * self.stride + 1

    @property
    def every(self) -> int:
        return self.step or self.span

    def starts(self, ticks: int) -> range:
        """The first tick of each clip; a film of fewer than ``span`` ticks has none."""
        return range(0, ticks - self.span + 1, self.every)

    def keeps(self, tick: int) -> bool:
        """Whether a tick may belong to a clip."""
        if self._apart:
            place = tick % self.every
            return place < self.span and place % self.stride == 0
        return tick % math.gcd(self.stride, self.every) == 0

    def places(self, ticks: int) -> tuple[list[int], int]:
        """The first row of each clip among the ticks that are kept, and the stride of clips there."""
        starts = self.starts(ticks)
        if self._apart:
            return [i * self.frames for i in range(len(starts))], 1
        unit = math.gcd(self.stride, self.every)
        return [start // unit for start in starts], self.stride // unit

    @property
    def _apart(self) -> bool:
        return self.every >= self.span


def cut_of(options: DataOptions) -> Cut | None:
    """How clips are cut by the options; None of still images."""
    if options.frames == 1:
        return None
    return Cut(options.frames, options.stride, options.step, options.rate)


def ticks(times: Sequence[float], rate: float, end: float | None = None) -> list[int]:
    """The frame at each tick: tick k has the last one whose time is at most the first + k / rate (seconds).

    The last tick is at the time of the last frame or before; with an ``end``, before that.
    """
    frames: list[tuple[float, int | None]] = [(time, i) for i, time in enumerate(times)]
    return list(at_ticks(frames if end is None else [*frames, (end, None)], rate))


def at_ticks(frames: Iterable[tuple[float, T | None]], rate: float | None) -> Iterator[T]:
    """As ``ticks``, of frames with rising times that come one by one; every frame where the rate is None.

    A None after the last frame has the time at which that ends. Raises Unusable for a gap that a great many ticks
    would fill.
    """
    tick, first, before = 0, math.nan, None
    for time, frame in frames:
        if rate is None:
            if frame is not None:
                yield frame
            continue
        first = time if math.isnan(first) else first
        if (time - first) * rate - tick > _MOST:
            raise Unusable(f"a frame of it is shown for {time - first - tick / rate:,.0f} seconds")
        while before is not None and first + tick / rate < time - _NEAR:
            yield before
            tick += 1
        before = frame
    while rate is not None and before is not None and first + tick / rate <= time + _NEAR:
        yield before
        tick += 1


@dataclass
class Spacing:
    """The rate of a film, from the times of its frames as they come."""

    rounding: float  # seconds by which its time stamps are rounded
    frames: int = 0
    times: int = 0  # of frames, and of the end where that is known
    first: float = 0.0
    last: float = 0.0
    gaps: Counter[int] = field(default_factory=Counter)  # in tenths of milliseconds

    def watch(self, frames: Iterable[tuple[float, T | None]]) -> Iterator[tuple[float, T | None]]:
        for time, frame in frames:
            if self.times:
                self.gaps[round((time - self.last) * 1e4)] += 1
            else:
                self.first = time
            self.last = time
            self.times += 1
            self.frames += frame is not None
            yield time, frame

    @property
    def rate(self) -> float | None:
        """Frames a second in the mean; None of one frame whose end is not known, or where no time passes."""
        lasts = self.last - self.first
        return (self.times - 1) / lasts if self.times > 1 and lasts > 0 else None

    @property
    def uneven(self) -> bool:
        """Whether frames are shown for unlike times, beyond rounding."""
        return bool(self.gaps) and (max(self.gaps) - min(self.gaps)) / 1e4 > 2 * self.rounding + 1e-4
