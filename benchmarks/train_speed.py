"""How many images a second does each train on, at the same parameter count and batch?

    python benchmarks/train_speed.py

A step is forward, backward, optimiser and moving average, each with its own defaults: the peers in float32,
Limner in bf16 where the processor is quick at it. Limner's flow against one library at a
time: a slice of the one, a slice of the other, in turns; each pair gives one ratio.
"""

from __future__ import annotations

from pairs import compare
from peers import Contestant


def one_step(contestant: Contestant) -> int:
    contestant.step(0.5)
    return contestant.batch


if __name__ == "__main__":
    compare(one_step, __doc__)
