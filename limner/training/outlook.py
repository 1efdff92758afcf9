"""What a budget will give, in sentences before the first step: passes over the images, and which size suits it.

The rule is for families that denoise, and was measured by one of them on one set (docs/log.md, "Which size suits a
budget"): in equal time images of half the size are the better ones where 6,000 are seen at the size itself, and the
worse ones where 18,000 are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from limner.config import Budget, budget_of

FEW = 10_000  # images seen at a size, below which half of it is the better one: between the two that were measured
ENOUGH = 18_000  # from here on the size itself is
LEAST_SIDE = 24  # pixels: smaller images were not compared
GAIN = 1.5  # times as many images in the same time, below which another size is not worth a sentence

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Outlook:
    """What is known before the first step."""

    budget: Budget
    said: str  # the budget as a person gave it
    rate: float  # images a second
    batch: int
    epoch: int  # images
    size: Size
    own: Size | None = None  # of the images' files; None: drawn at any size, or not known
    seen: int = 0  # images, by a run that goes on
    seconds: float = 0.0
    noun: str = "image"

    @property
    def timed(self) -> bool:
        return self.budget.unit == "seconds"

    def reached(self, rate: float) -> float:
        """Images seen at the end of the budget, at so many a second."""
        if not self.timed:
            return self.budget.amount
        return self.seen + max(self.budget.amount - self.seconds, 0) * rate


def too_short(o: Outlook) -> str:
    """A sentence where the budget ends before one step or one pass over the images; "" elsewhere."""
    reached, needed = o.reached(o.rate), max(o.epoch, o.batch)
    if reached >= needed:
        return ""
    if reached < o.batch:
        ends = f"is less than one step of {o.batch} {o.noun}s, so that one step is all that is trained"
    else:
        ends = f"ends after about {reached:,.0f} of {o.epoch:,} {o.noun}s, before each was seen once"
    missing = (needed - reached) / o.rate
    enough = f"about {budget_of(o.budget.amount + missing)}" if o.timed else f"{needed}img"
    smaller = ", or lower --size," if o.timed else ""
    return (
        f"The budget of {o.said} {ends}. Each is seen once in {enough}: raise --budget{smaller} if the "
        "result is poor."
    )


def other_size(o: Outlook, rate_at: Callable[[Size], float]) -> str:
    """A sentence where another size suits a budget in time better; "" elsewhere.

    ``rate_at`` measures the images a second at another size: 0 where there can be none.
    """
    if not o.timed:
        return ""
    reached = o.reached(o.rate)
    if reached < FEW:
        return _smaller(o, reached, rate_at)
    doubled = 2 * o.size[0], 2 * o.size[1]
    # Not tried where twice the pixels, at four times the price, are too many: a trial costs time too.
    if o.own is None or any(a < b for a, b in zip(o.own, doubled, strict=True)) or reached < 2 * ENOUGH:
        return ""
    if (there := o.reached(rate_at(doubled))) < ENOUGH:
        return ""
    return (
        f"The {o.noun}s are larger than {_by(o.size)}: --size {_by(doubled)} sees about {_rounded(there)} in {o.said}, "
        "which is enough for it."
    )


def _smaller(o: Outlook, reached: float, rate_at: Callable[[Size], float]) -> str:
    """A sentence where half the size is the better choice."""
    halved = o.size[0] // 2, o.size[1] // 2
    if min(halved) < LEAST_SIDE:
        return ""
    there = o.reached(rate_at(halved))
    if there < GAIN * reached:
        return ""
    passes = reached / max(o.epoch, 1)
    enough = budget_of(o.seconds + (ENOUGH - o.seen) / o.rate)
    return (
        f"In {o.said} about {_rounded(reached)} {o.noun}s will be seen, {passes:,.1f} passes: at {_by(o.size)} that "
        f"gives shapes without detail. Take --size {_by(halved)}, which sees about {_rounded(there)}, or --budget "
        f"{enough}."
    )


def _by(size: Size) -> str:
    """As --size takes it."""
    return f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _rounded(count: float) -> str:
    """To two digits: the rate of a trial is not known better."""
    return f"{float(f'{count:.2g}'):,.0f}"
