"""How many rows a call may have: timed until a row gains little, and sorted by the bits that they give."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limner.serve.engine.memory import release
from limner.serve.engine.rows import same_bits
from limner.settings import lacks_memory

LIMIT = 64  # rows of a call on a CPU
LIMIT_OF_GPU = 256
GAIN = 0.95  # twice the rows must take at most so many times the seconds a row
LADDER = 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256
FEW = 4  # with fewer rows, several rows are tried
QUICK = 0.02  # seconds of trials after which their shortest counts
LONG = 0.05  # seconds of trials after which each company is tried once: there are further rounds
DULL = 2  # powers of two that gain nothing, after which no further one is tried
SOON = 0.2  # share of the budget that such trials are worth
ROUNDS = 2  # in which numbers are timed again, since other work comes and goes
STEADY = 0.95  # of its time; one that a round makes no shorter is not timed once more
STAY = 1.5  # times the seconds of the fastest class that the one of an earlier start may take, for its bits' sake
LONGEST = 3.0  # seconds of trials of all numbers, after which no further one is tried

# The rows of the numbers given, which may be of several tensors: one call of a network, or one drawing.
Run = Callable[[Sequence[int]], list[tuple[Tensor | None, ...]]]
Bits = dict[int, tuple[Tensor | None, ...]]  # what a row gave, by its number


@dataclass(frozen=True)
class Trial:
    """What calls of ``count`` rows do."""

    count: int
    seconds: float  # the shortest
    bits: Bits | None  # None: a row depends on its place or on its neighbours


@dataclass
class Bench:
    """Tries calls of any number of rows. ``pool``: rows that ``run`` knows, numbered from 0."""

    run: Run
    pool: int
    device: torch.device

    def clock(self) -> float:
        """On one thread that of this process alone, which other work changes least; several wait for each other."""
        if self.device.type != "cpu":
            torch.cuda.synchronize(self.device)
        elif torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()

    def trial(self, count: int) -> Trial:
        """Rows 0, 1, ... in order, then some of them from the other end beside others."""
        half = (count + 1) // 2
        strangers = [self.pool - 1 - i for i in range(count - half)]
        companies = [list(range(count)), [*strangers, *reversed(range(half))]]
        if count < FEW:
            companies += [[(i + shift * count) % self.pool for i in range(count)] for shift in (1, 2, 3)]
        bits: Bits = {}
        seconds: list[float] = []
        stable, spent = True, 0.0
        while len(seconds) < max(len(companies), 3 if spent < LONG else 2) or (
            spent < QUICK and len(seconds) < 8
        ):
            company = companies[len(seconds) % len(companies)]
            start = self.clock()
            found = self.run(company)
            seconds.append(self.clock() - start)
            spent += seconds[-1]
            for number, row in zip(company, found, strict=True):
                stable &= equal(bits.setdefault(number, row), row)
        return Trial(count, min(seconds[1:]), bits if stable else None)  # the first one also prepares

    def timed_again(self, trial: Trial) -> Trial:
        start = self.clock()
        self.run(range(trial.count))
        return replace(trial, seconds=min(trial.seconds, self.clock() - start))


def equal(one: tuple[Tensor | None, ...], other: tuple[Tensor | None, ...]) -> bool:
    return all(same_bits(a, b) for a, b in zip(one, other, strict=True))


def agree(one: Trial, other: Trial) -> bool:
    """Whether calls of both numbers give the same bits, in all rows that both had."""
    if one.bits is None or other.bits is None:
        return False
    common = one.bits.keys() & other.bits.keys()
    return bool(common) and all(equal(one.bits[number], other.bits[number]) for number in common)


def survey(bench: Bench, limit: int, budget: float = LONGEST, least: int = 1) -> list[Trial]:
    """Trials of more and more rows, up to the cap: a row of more of them gains less than 5%, or memory runs short.

    Powers of two decide about the cap, which is ``least`` or more where memory allows; those between come after.
    A time may be too long because of other work, so that a single one does not decide. Raises what even a single row
    raises.
    """
    trials: list[Trial] = []
    start = bench.clock()
    for count in filter(is_power, LADDER):
        spent = bench.clock() - start
        dull = (trials and spent > budget) or (spent > budget * SOON and hopeless(trials))
        if count > limit or (dull and count > least):
            break
        try:
            trials.append(bench.trial(count))
        except (RuntimeError, MemoryError) as error:
            if not trials or not lacks_memory(error):
                raise
            release(bench.device)
            break
    time_again(bench, trials, start + budget)
    each = {trial.count: trial.seconds / trial.count for trial in trials}
    cap = max(least, next(count for count, seconds in each.items() if GAIN * seconds <= min(each.values())))
    trials = [trial for trial in trials if trial.count <= cap]
    for count in LADDER:
        if not is_power(count) and count < trials[-1].count and bench.clock() - start < budget:
            trials.insert(-1, bench.trial(count))
    return sorted(trials, key=lambda trial: trial.count)


def time_again(bench: Bench, trials: list[Trial], end: float) -> None:
    """Time calls of each number once more, and those that were shorter then another time."""
    unsteady = set(range(len(trials)))
    for _ in range(ROUNDS):
        for i in sorted(unsteady):
            if bench.clock() < end:
                before, trials[i] = trials[i], bench.timed_again(trials[i])
                if trials[i].seconds > STEADY * before.seconds:
                    unsteady.discard(i)


def is_power(count: int) -> bool:
    return count & (count - 1) == 0


def hopeless(trials: Sequence[Trial]) -> bool:
    """Whether each of the last few trials took longer for a row than an earlier one."""
    each = [trial.seconds / trial.count for trial in trials]
    return len(each) > DULL and min(each[-DULL:]) > min(each[:-DULL])


# ---- classes of numbers that give the same bits


def classes(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials that agree, in groups; those whose rows depend on each other are left out."""
    found: list[list[Trial]] = []
    for trial in trials:
        if trial.bits is None:
            continue
        home = next((group for group in found if all(agree(trial, other) for other in group)), None)
        if home is None:
            found.append(home := [])
        home.append(trial)
    return found


DEMANDS = 2, 4, 8, 16, 32, 64  # rows that are asked for at once, by which classes are compared


def seconds_for(demand: int, group: Sequence[Trial]) -> float:
    """What calls of the numbers of a class take for so many rows."""
    most = group[-1]
    whole, rest = divmod(demand, most.count)
    padded = next((trial.seconds for trial in group if trial.count >= rest), most.seconds) if rest else 0.0
    return whole * most.seconds + padded


def best_class(groups: Sequence[list[Trial]], usual: list[Trial] | None = None) -> list[Trial]:
    """The class that comes nearest to the fastest one at each of `DEMANDS`, by the geometric mean.

    ``usual`` is the one of an earlier start, which is left for a much faster one alone.
    """

    def share(group: list[Trial]) -> float:
        product = 1.0
        for demand in DEMANDS:
            product *= seconds_for(demand, group) / min(seconds_for(demand, other) for other in groups)
        return product

    best = min(groups, key=share)
    return usual if usual and share(usual) <= share(best) * STAY ** len(DEMANDS) else best


def complete(bench: Bench, group: list[Trial], cap: int, budget: float) -> list[Trial]:
    """The class with further numbers that belong to it, the smallest first, as far as the seconds go."""
    known, start = {trial.count for trial in group}, bench.clock()
    largest = group[-1]
    first = max((count for count in LADDER if count < group[0].count), default=0) + 1
    for count in range(first, min(group[-1].count, cap)):
        if bench.clock() - start > budget:
            break
        if count not in known and agree(trial := bench.trial(count), largest):
            group = [*group, trial]
    return sorted(group, key=lambda trial: trial.count)
