"""Whether the state of a training is worth keeping.

A state is sane if

- its live weights, moving average and optimisers are finite, and
- its loss is finite, and at most ``EXPLODED`` times that of the run's first state, or ``EXPLODED`` where that is below
  1. The loss is the sum of the magnitudes of the terms that every objective minimises, by the averaged weights, on a
  few held-out images, or training images where none are held out: always the same ones, with the same draws.

Only sane states are saved, with their loss in state.json, so every checkpoint is one that training can return to, and
the last sane one is never deleted. The first state, before the first step, is kept whatever its loss is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from limner.checkpoint import not_finite
from limner.data import Data
from limner.training.loop import Loop

EXPLODED = 1000.0
IMAGES = 4  # enough to tell a loss from a thousand times as much
SAID_BY_FIRST = "its state was not sane, as the first process says"


def loss_of(loop: Loop, data: Data) -> float:
    """The loss that says whether the state is sane; it changes nothing."""
    buffers = {name: value.clone() for name, value in loop.average.named_buffers()}
    terms = loop.held_out_losses(data, limit=IMAGES)
    for name, value in loop.average.named_buffers():
        value.copy_(buffers[name])
    shown = {f"{player.name}/{name}" for player in loop.players for name in player.objective.shown}
    return sum(abs(value) for name, value in terms.items() if name not in shown)


def fault(live: Mapping[str, Tensor], average: Mapping[str, Tensor], loss: float, first_loss: float) -> str:
    """Why the state is not sane, to follow 'since'; empty if it is. An infinite ``first_loss`` allows any loss."""
    kinds: dict[str, dict[str, Tensor]] = {"weights": {}, "optimiser": {}, "moving average": dict(average)}
    for name, value in live.items():
        kinds["weights" if name.startswith("model/") else "optimiser"][name.partition("/")[2]] = value
    for kind, tensors in kinds.items():
        if bad := not_finite(tensors):
            return f"the {kind} held infinite values or NaN in {bad[0]}" + _more(len(bad) - 1)
    most = EXPLODED * max(1.0, 0.0 if math.isnan(first_loss) else first_loss)
    if first_loss != math.inf and not loss <= most:
        return f"its held-out loss was {loss:.3g}" + (f", above {most:.3g}" if math.isfinite(loss) else "")
    return ""


def _more(n: int) -> str:
    return f" and {n} more" if n else ""
