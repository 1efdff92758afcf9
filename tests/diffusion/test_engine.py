"""Requests at different steps share network calls: a server's engine in small, over a mock and a real network."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle, islice

import pytest
import torch
from torch import Tensor

from limner.core import Condition, Draws, ImageSpec
from limner.diffusion import sampling
from limner.diffusion.paths import Straight
from limner.diffusion.sampling import Diffusion, Drawing, SamplingConfig, evaluate
from limner.diffusion.solvers import Query
from limner.families.flow import Flow, FlowSampling
from tests.diffusion.gaussian import Gaussian

TEXTS = ["red", "a large blue square to the left of a small one", "", "зелёный круг"]
SOLVERS = ["unipc", "euler", "heun", "dpm2m", "dpm2m_sde", "dpm3m", "ddim", "ancestral"]


@dataclass
class Engine:
    """Each tick takes every request under way one query further, by one call of each network."""

    active: dict[int, tuple[Drawing, Query]] = field(default_factory=dict)
    results: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, number: int, drawing: Drawing) -> None:
        self.active[number] = drawing, next(drawing.solver)

    def tick(self) -> None:
        calls = {
            number: drawing.calls(query.x, query.level) for number, (drawing, query) in self.active.items()
        }
        guesses = iter(evaluate([call for part in calls.values() for call in part]))
        for number, part in calls.items():
            drawing, _ = self.active.pop(number)
            try:
                query = drawing.solver.send(drawing.combine(list(islice(guesses, len(part)))))
                self.active[number] = drawing, query
            except StopIteration as end:
                self.results[number] = drawing.picture(end.value)


def run(requests: list[tuple[Condition, SamplingConfig]], model: Diffusion, every: int) -> list[Tensor]:
    """One request begins every ``every`` ticks, with seeds of its own."""
    engine, tick = Engine(), 0
    while len(engine.results) < len(requests):
        if tick % every == 0 and tick // every < len(requests):
            condition, config = requests[tick // every]
            seeds = Draws(range(100 * tick, 100 * tick + condition.size))
            engine.begin(tick // every, Drawing(model, condition, config, seeds))
        engine.tick()
        tick += 1
    return [engine.results[i] for i in range(len(requests))]


def alone(requests: list[tuple[Condition, SamplingConfig]], model: Diffusion, every: int) -> list[Tensor]:
    drawn = []
    for number, (condition, config) in enumerate(requests):
        first = 100 * every * number
        draws = Draws(range(first, first + condition.size))
        *_, canvas = model.sample(condition, config, draws)  # type: ignore[attr-defined]
        drawn.append(canvas.picture())
    return drawn


def configs(kind: type[SamplingConfig]) -> list[SamplingConfig]:
    """Twelve with different solvers and steps; every third without guidance, some with it at some levels only."""
    return [
        kind(
            solver=solver, steps=8 + number, guidance=1.0 if number % 3 == 0 else 2.5, eta=0.5, churn=10.0,
            guidance_low=0.3 if number % 4 == 1 else 0.0,
        )
        for number, solver in zip(range(12), cycle(SOLVERS))
    ]  # fmt: skip


def test_requests_at_different_steps_share_calls_of_a_mock():
    model = Gaussian(Straight(), gap=0.1)
    requests = [
        (Condition(1 + i % 3, label=torch.zeros(1 + i % 3, dtype=torch.long)), config)
        for i, config in enumerate(configs(SamplingConfig))
    ]
    separate = alone(requests, model, every=1)
    calls_alone = len(model.calls)
    model.calls.clear()
    together = run(requests, model, every=1)
    for one, other in zip(separate, together, strict=True):
        assert torch.equal(one, other)
    assert (calls_alone, len(model.calls)) == (188, 45)
    assert any(len({round(level, 6) for level in levels}) > 4 for _, levels in model.calls), "steps differ"


def test_requests_at_different_steps_share_calls_of_a_network():
    spec = ImageSpec(3, 16, 16, captions=True)
    torch.manual_seed(0)
    model = Flow(Flow.presets["tiny"].model, spec).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    rows: list[int] = []
    model.network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    requests = [
        (Condition(1 + i % 2, text=[TEXTS[(i + k) % 4] for k in range(1 + i % 2)]), config)
        for i, config in enumerate(configs(FlowSampling))
    ]
    with torch.inference_mode():
        separate = alone(requests, model, every=1)
        calls_alone, rows_alone = len(rows), sum(rows)
        rows.clear()
        together = run(requests, model, every=1)
    for one, other in zip(separate, together, strict=True):
        assert (one - other).abs().max() <= 2 / 255, "within one level of 255"
    assert sum(rows) == rows_alone, "no row more"
    assert (calls_alone, len(rows)) == (188, 45)


def test_a_request_that_is_given_up_leaves_the_others_alone():
    model = Gaussian(Straight())
    config = SamplingConfig(steps=6, guidance=1.0)
    engine = Engine()
    for number in (0, 1):
        engine.begin(number, Drawing(model, Condition(1), config, Draws([number])))
    engine.tick()
    del engine.active[0]
    while engine.active:
        engine.tick()
    *_, canvas = model.sample(Condition(1), config, Draws([1]))
    assert torch.equal(engine.results[1], canvas.picture())


def test_calls_of_different_networks_are_answered_in_order():
    models = [Gaussian(Straight()), Gaussian(Straight(), gap=1.0)]
    config = SamplingConfig(steps=2, guidance=1.0)
    drawings = [Drawing(models[i % 2], Condition(1), config, Draws([i])) for i in range(4)]
    calls = [drawing.calls(*next(drawing.solver)[:2])[0] for drawing in drawings]
    together = evaluate(calls)
    for call, guess in zip(calls, together, strict=True):
        (single,) = evaluate([call])
        assert torch.equal(guess.data, single.data)
    assert [len(model.calls) for model in models] == [3, 3], "one for both of its drawings, and two alone"


@pytest.mark.parametrize("solver", ["ancestral", "unipc"])
def test_a_drawing_alone_equals_the_drawing_in_a_batch(solver):
    model = Gaussian(Straight())
    config = SamplingConfig(steps=5, solver=solver)
    *_, both = model.sample(Condition(2), config, Draws([3, 4]))
    *_, second = model.sample(Condition(1), config, Draws([4]))
    assert torch.equal(both.picture()[1:], second.picture())


def test_a_cpu_shares_calls_up_to_a_size(monkeypatch):
    monkeypatch.setattr(sampling, "CPU_PLACES", 3 * 36)
    model = Gaussian(Straight(), gap=0.5)
    config = SamplingConfig(steps=1, guidance=2.0)
    for size, rows in ((1, [2]), (2, [2, 2]), (4, [4, 4])):
        model.calls.clear()
        label = torch.zeros(size, dtype=torch.long)
        *_, canvas = model.sample(Condition(size, label=label), config, Draws(range(size)))
        assert [len(row) for row, _ in model.calls] == rows
        assert canvas.picture().shape == (size, 1, 6, 6)
