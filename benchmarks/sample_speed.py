"""How many images a second does each draw, with as many network calls at the same parameter count?

    python benchmarks/sample_speed.py

Limner by Euler's method, the others by their DDIM: one network call a step. Limner's flow against one library
at a time: a slice of the one, a slice of the other, in turns; each pair gives one ratio.
"""

from __future__ import annotations

from pairs import compare
from peers import Contestant

CALLS = 32  # images a second times this are network calls a second


def one_batch(contestant: Contestant) -> int:
    return len(contestant.sample(contestant.batch, CALLS))


if __name__ == "__main__":
    compare(one_batch, __doc__)
