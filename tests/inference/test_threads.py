"""The controller of threads on simulated machines with a simulated clock; and what the process does with it."""

import dataclasses
import random

import pytest
import torch

from limner import config
from limner.fields import LimnerError
from limner.inference import threads
from limner.inference.threads import Controller, Threads


class Machine:
    """Simulated processors: ``busy(t)`` of them are taken by other work at a time."""

    def __init__(self, busy, cores=2, seed=0, trusted=True):
        self.busy, self.cores, self.now = busy, cores, 0.0
        self.random, self.trusted, self.trials = random.Random(seed), trusted, 0.0
        self.controller = Controller(cores, self.trial, lambda: self.now)

    def speed(self, count):
        """Work a second: threads wait for each other where there are not enough processors for all."""
        free = self.cores - self.busy(self.now)
        if count <= free:
            return count**0.7
        return 0.5 if count == 1 else 0.06

    def trial(self, count):
        rate = self.speed(count) * self.random.uniform(0.8, 1.25)
        self.now += 0.02 + 0.02 * (self.speed(count) < 0.1)
        self.trials += 0.02
        return rate if self.trusted else self.random.uniform(0.1, 2.0)

    def run(self, until, size=lambda step: 0.2, kind=lambda step: "step"):
        """The work done, and how many threads the last unit had."""
        done, step = 0.0, 0
        while self.now < until:
            count = self.controller.choose()
            work = size(step) * self.random.uniform(0.9, 1.1)
            start, left = self.now, work
            self.now += min(left / self.speed(count), patience := self.controller.patience(kind(step)))
            if left / self.speed(count) > patience:
                left -= patience * self.speed(count)
                self.now += left / self.speed(self.controller.late())
            self.controller.took(kind(step), self.now - start)
            done, step = done + work, step + 1
        return done


def best(machine, until):
    """The work of one who always knows the fastest number of threads."""
    steps, done = 1000, 0.0
    for i in range(steps):
        machine.now = until * i / steps
        done += max(machine.speed(count) for count in machine.controller.counts) * until / steps
    machine.now = 0.0
    return done


def share(busy, until=120.0, cores=2, **work):
    """Of the best work in that time: the least over a few simulations."""
    shares = []
    for seed in range(5):
        machine = Machine(busy, cores, seed)
        shares.append(machine.run(until, **work) / best(Machine(busy, cores), until))
    return min(shares)


@pytest.mark.parametrize("cores", [1, 2, 4, 16])
def test_a_quiet_machine_keeps_all_threads(cores):
    assert share(lambda now: 0, cores=cores) > 0.975


@pytest.mark.parametrize("cores, busy", [(2, 1), (2, 2), (2, 3), (4, 1), (16, 1), (16, 12)])
def test_beside_other_work_from_the_start(cores, busy):
    """n / 2 may leave processors unused, which the best of n, n / 2, ..., 1 does too."""
    assert share(lambda now: busy, cores=cores) > 0.93


def test_work_that_begins_costs_less_than_a_second():
    """Not a whole unit, which would take twenty times as long."""
    machine = Machine(lambda now: 1 if now > 30 else 0)
    machine.run(29.5)
    assert machine.controller.count == 2
    machine.run(31)
    assert machine.controller.count == 1 and machine.now < 31.5


@pytest.mark.parametrize("seed", range(10))
def test_all_threads_are_back_soon_after_other_work_ends(seed):
    machine = Machine(lambda now: 2 if now < 100 else 0, seed=seed)
    machine.run(100)
    assert machine.controller.count == 1
    machine.run(130)
    assert machine.controller.count == 2


def test_work_that_comes_and_goes():
    assert share(lambda now: 1 if now % 40 < 20 else 0, until=240.0) > 0.85


@pytest.mark.parametrize("kind", [lambda step: "step", lambda step: step % 16 == 0])
def test_steps_of_two_lengths_are_no_other_work(kind):
    """As of a GAN whose regularisation is due every 16th step; also where their kind does not tell them apart."""
    assert share(lambda now: 0, size=lambda step: 0.6 if step % 16 == 0 else 0.1, kind=kind) > 0.96


def test_steps_that_grow_are_no_other_work():
    """As in progressive growing."""
    assert share(lambda now: 0, size=lambda step: 0.05 * 2 ** (step // 150)) > 0.96


def test_first_units_that_are_slow_do_not_mislead():
    assert share(lambda now: 0, size=lambda step: 3.0 if step < 2 else 0.2) > 0.96


def test_short_units():
    """Calls of 3 ms, as of sampling one image."""
    assert share(lambda now: 0, until=40.0, size=lambda step: 0.003) > 0.97
    assert share(lambda now: 2, until=40.0, size=lambda step: 0.003) > 0.9


def test_units_outweigh_trials():
    """A trial that says nothing of the work: its advice is tried, and taken back by the units."""
    machine = Machine(lambda now: 0, trusted=False)
    assert machine.run(240) / best(Machine(lambda now: 0), 240) > 0.9


def test_trials_take_little_time():
    for busy in (0, 1, 3):
        machine = Machine(lambda now, busy=busy: busy)
        machine.run(120)
        assert machine.trials < 0.03 * 120


# ---- the process


@pytest.fixture
def two(monkeypatch):
    """A process that may use two threads."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "processors", lambda: 2)
    torch.set_num_threads(2)
    yield Threads()
    torch.set_num_threads(before)


def test_the_number_is_set_back_behind_the_work(two, monkeypatch):
    monkeypatch.setattr(threads, "trial", lambda count: 1.0 / count)  # one is faster
    with two.at_work(torch.device("cpu")):
        assert torch.get_num_threads() == 1
        with two.at_work(torch.device("cpu")):
            pass
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError), two.at_work(torch.device("cpu")):
        raise ValueError
    assert torch.get_num_threads() == 2


def test_a_fixed_number_is_kept(two, monkeypatch):
    monkeypatch.setattr(threads, "trial", lambda count: pytest.fail("measured"))
    two.use(2)
    with two.at_work(torch.device("cpu")), two.unit("step"):
        assert torch.get_num_threads() == 2
    with two.keep(1), two.at_work(torch.device("cpu")), two.unit("step"):
        assert torch.get_num_threads() == 1


def test_no_more_threads_than_processors(two):
    with pytest.raises(LimnerError, match=r"^--threads 3 is more than the processors here, 2: choose"):
        two.use(3)


def test_a_trial_changes_no_random_state():
    before, count = torch.get_rng_state(), torch.get_num_threads()
    assert threads.trial(1) > 0
    torch.set_num_threads(count)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("value", [0, -1, 2.5, "many"])
def test_threads_of_a_training_are_a_number_or_auto(value):
    with pytest.raises(LimnerError, match=r"--training\.threads"):
        dataclasses.replace(config.preset_run("flow", "tiny").training, threads=value)


def test_a_unit_that_takes_too_long_changes_threads_within(two, monkeypatch):
    """In the forward and in the backward pass."""
    state = {"busy": False, "now": 0.0}
    monkeypatch.setattr(threads, "trial", lambda count: float(1 / count if state["busy"] else count))
    monkeypatch.setattr(threads.time, "perf_counter", lambda: state["now"])
    counts = []

    class Late(torch.autograd.Function):
        """Other work begins in one of the passes."""

        @staticmethod
        def forward(ctx, x, start):
            ctx.start = start
            state["now"] += 1.0 if start == "forward" else 0.1
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            state["now"] += 1.0 if ctx.start == "backward" else 0.0
            return gradient, None

    class Network(torch.nn.Module):
        def forward(self, x, start):
            return Late.apply(x, start)

    network, last = Network(), torch.nn.Linear(1, 1)
    for start in ("forward", "backward"):
        state["busy"] = False
        two.controller = Controller(2, threads.trial, lambda: state["now"])
        with two.at_work(torch.device("cpu")):
            for begins in ("", "", start):
                state["now"] += 10
                with two.unit("step"):
                    state["busy"] = bool(begins)
                    hidden = network(last(torch.ones(1, 1)), begins)
                    last(hidden).sum().backward()
                    counts.append(torch.get_num_threads())
    assert counts == [2, 2, 1, 2, 2, 1]
