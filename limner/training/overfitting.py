"""Whether a training went on for longer than its images were good for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

RISEN = 0.02  # of the lowest held-out loss: less may be chance
EARLY = 0.8  # share of the training; a later lowest loss leaves little to save


def turned(
    log: Sequence[Mapping[str, Any]],
    terms: Collection[str],
    epoch: int,
    noun: str = "image",
    flipped: bool = False,
) -> str:
    """A sentence where the held-out loss was lowest long before the end and has risen since; "" elsewhere.

    ``terms`` are the names in the log that add up to the loss, ``epoch`` is the number of training images.
    """
    losses = [
        (sum(line[term] for term in terms), line["seen"])
        for line in log
        if all(term in line for term in terms)
    ]
    if not losses or not terms:
        return ""
    (last, end), (lowest, seen) = losses[-1], min(losses)
    if lowest <= 0 or last < (1 + RISEN) * lowest or seen > EARLY * end:
        return ""
    passes, flip = seen / max(epoch, 1), "" if flipped else "with --data.flip, "
    return (
        f"The held-out loss was lowest after {seen:,} {noun}s, {passes:,.0f} passes, and has risen by "
        f"{last / lowest - 1:.0%} since: what came after taught these {noun}s by heart. Train on more {noun}s, {flip}"
        f"or with --budget {seen}img; limner evaluate counts copies."
    )
