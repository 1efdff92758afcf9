"""What goes wrong in one request touches no other: memory, NaN, errors, rows that depend on each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.core import Denoised, Draws, LimnerError
from limner.diffusion import sampling
from limner.serve.engine import flights, works
from tests.serve.engine.runs import Desk, serve

RunOf = Callable[..., Path]
PLAIN: dict[str, Any] = {"guidance": 1.0, "steps": 4}


def spoil(model: Any, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Have ``change(x, guess)`` stand between the network and who asks it."""
    honest = model.denoise

    def denoise(x: Tensor, *others: Any) -> Denoised:
        data, variance = honest(x, *others)
        return Denoised(change(x, data), variance)

    model.denoise = denoise


def images_of(path: Path, seeds: range, **options: Any) -> list[dict[int, bytes]]:
    desk = Desk(one := serve(path, **options))
    asked = [desk.ask(one.id, seed, settings=PLAIN, client=str(seed)) for seed in seeds]
    desk.run()
    return [desk.images(work) for work in asked]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_short_memory_halves_the_calls(error: Exception, run_of: RunOf) -> None:
    path = run_of("flow")
    wanted = images_of(path, range(10))
    said: list[str] = []
    one = serve(path, say=said.append)
    most = 5

    def fail(x: Tensor, guess: Tensor) -> Tensor:
        if len(x) > most:
            raise error
        return guess

    spoil(one.model, fail)
    desk, before = Desk(one), one.fingerprint
    asked = [desk.ask(one.id, seed, settings=PLAIN, client=str(seed)) for seed in range(10)]
    desk.run()
    assert [desk.images(work) for work in asked] == wanted, "a smaller call of the same class"
    assert one.counters.out_of_memory == 1 and one.rows.most == 5 and one.fingerprint == before
    assert "memory ran short" in said[-1]


def test_another_class_is_never_taken_silently(run_of: RunOf) -> None:
    one = serve(run_of("flow"))
    assert one.rows.counts[0] > 2, "one row has other bits than many"

    def fail(x: Tensor, guess: Tensor) -> Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return guess

    desk, before = Desk(one), one.fingerprint
    first = desk.ask(one.id, 1, settings=PLAIN)
    desk.run(2)
    spoil(one.model, fail)
    desk.run()
    assert one.rows.counts == (1,) and one.fingerprint != before
    image = desk.events[first][-2]
    assert image.fingerprint == one.fingerprint and image.evaluations == 4, "it began again"
    again = desk.ask(one.id, 1, settings=PLAIN)
    desk.run()
    assert desk.images(again) == desk.images(first)


def test_what_does_not_fit_alone_is_told_so(run_of: RunOf) -> None:
    one = serve(run_of("flow"))
    bad = {"label": "cat", "settings": PLAIN}

    def fail(x: Tensor, guess: Tensor) -> Tensor:
        raise MemoryError

    spoil(one.model, fail)
    desk = Desk(one)
    asked = [desk.ask(one.id, i, **bad) for i in range(3)]
    desk.run()
    for work in asked:
        failed = desk.failure(work)
        assert failed.status == 503 and failed.code == "out_of_memory" and failed.message == works.NO_MEMORY


def test_short_memory_of_a_model_that_draws_by_itself(run_of: RunOf) -> None:
    path = run_of("dcgan")
    desk = Desk(one := serve(path))
    alone = [desk.ask(one.id, seed) for seed in range(6)]
    desk.run()
    wanted = [desk.images(work) for work in alone]
    one = serve(path)
    honest, most = type(one.model).sample, 2

    def sample(condition: Any, *others: Any) -> Any:
        if condition.size > most:
            raise MemoryError
        return honest(one.model, condition, *others)

    one.model.sample = sample
    desk = Desk(one)
    asked = [desk.ask(one.id, seed) for seed in range(6)]
    desk.run()
    assert [desk.images(work) for work in asked] == wanted and one.counters.out_of_memory >= 1
    most = 0
    late = desk.ask(one.id, 1)
    desk.run()
    assert desk.failure(late).status == 503


def test_nan_is_no_image(run_of: RunOf) -> None:
    one = serve(run_of("flow"))
    noise = Draws([3]).normal(*one.model.spec.shape)  # what this seed begins with
    spoil(
        one.model,
        lambda x, guess: torch.where((x == noise).flatten(1).all(1)[:, None, None, None], torch.nan, guess),
    )
    desk = Desk(one)
    asked = [desk.ask(one.id, seed, settings=PLAIN) for seed in range(6)]
    desk.run()
    kinds = [desk.kinds(work)[-2] for work in asked]
    assert kinds == ["image"] * 3 + ["failed"] + ["image"] * 2
    failed = desk.failure(asked[3])
    assert failed.status == 500 and "NaN" in failed.message


def test_an_error_of_one_flight_fails_it_alone(
    run_of: RunOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_of("flow")
    wanted = images_of(path, range(4))
    desk = Desk(one := serve(path))
    honest = sampling.Drawing.combine

    def combine(drawing: Any, guesses: Any) -> Denoised:
        if drawing.sampling.eta == 0.5:
            raise ZeroDivisionError("a secret of /home")
        return honest(drawing, guesses)

    monkeypatch.setattr(sampling.Drawing, "combine", combine)
    bad = desk.ask(one.id, 9, settings=PLAIN | {"eta": 0.5})
    asked = [desk.ask(one.id, seed, settings=PLAIN) for seed in range(4)]
    desk.run()
    assert [desk.images(work) for work in asked] == wanted
    failed = desk.failure(bad)
    assert failed.status == 500 and "secret" not in failed.message
    assert "ZeroDivisionError" in capsys.readouterr().err, "the log says more"


def test_an_error_of_a_call_is_its_causes_alone(run_of: RunOf) -> None:
    path = run_of("flow")
    wanted = images_of(path, range(4))
    one = serve(path)

    def fail(x: Tensor, guess: Tensor) -> Tensor:
        if x.abs().max() > 50:
            raise ValueError("too large")
        return guess

    desk = Desk(one)
    bad = desk.ask(one.id, 9, settings=PLAIN | {"solver": "euler"})
    asked = [desk.ask(one.id, seed, settings=PLAIN) for seed in range(4)]
    desk.run(2)
    spoil(one.model, fail)
    flight = next(f for f in desk.scheduler.lanes[one.id].flights.values() if f.image.order.work.id == bad)  # type: ignore[union-attr]
    flight.query = flight.query._replace(x=flight.query.x + 100)  # type: ignore[union-attr]
    desk.run()
    assert desk.failure(bad).status == 500 and [desk.images(work) for work in asked] == wanted


def test_an_error_of_a_batch_is_its_causes_alone(run_of: RunOf) -> None:
    one = serve(run_of("dcgan"))
    honest = type(one.model).sample

    def sample(condition: Any, settings: Any, draws: Any) -> Any:
        if 13 in draws.seeds:
            raise ValueError("unlucky")
        return honest(one.model, condition, settings, draws)

    one.model.sample = sample
    desk = Desk(one)
    asked = [desk.ask(one.id, seed) for seed in (11, 12, 13, 14)]
    desk.run()
    assert [desk.kinds(work)[-2] for work in asked] == ["image", "image", "failed", "image"]


def test_a_fatal_error_ends_the_engine(run_of: RunOf) -> None:
    """Only a new process can go on where a device's context is dead."""
    one = serve(run_of("flow"))

    def fail(x: Tensor, guess: Tensor) -> Tensor:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered", 1)

    spoil(one.model, fail)
    desk = Desk(one)
    desk.ask(one.id, 1, settings=PLAIN)
    with pytest.raises(torch.AcceleratorError):
        desk.run()


@pytest.mark.parametrize("family", ["flow", "dcgan"])
def test_a_row_that_depends_on_others_is_found(family: str, run_of: RunOf) -> None:
    """A call is done again in other company; from then on there is one number of rows, and another fingerprint."""
    path = run_of(family, seed=11)
    said: list[str] = []
    one = serve(path, say=said.append)
    before, settings = one.fingerprint, PLAIN if family == "flow" else {}
    if one.flies:
        spoil(one.model, lambda x, guess: guess + 1e-6 * len(x))
    else:
        honest = type(one.model).paint
        one.model.paint = lambda latent, condition: (
            honest(one.model, latent, condition) * (1 - 1e-3 * len(latent))
        )
    desk = Desk(one, check_every=3)
    asked = [desk.ask(one.id, seed, settings=settings, client=str(seed)) for seed in range(5)]
    for _ in range(3):
        desk.run()
        asked += [desk.ask(one.id, 1, settings=settings)]
    desk.run()
    assert one.counters.mismatches == 1 and any("depended on" in words for words in said)
    assert one.rows.counts == (one.rows.most,) and one.fingerprint != before
    assert desk.images(asked[-1]) == desk.images(asked[-2])
    fresh = serve(path)
    assert fresh.rows == one.rows and fresh.fingerprint == one.fingerprint, "a restart knows it too"


def test_an_honest_call_done_again_is_equal(run_of: RunOf) -> None:
    one = serve(run_of("flow"))
    desk = Desk(one, check_every=1)
    for seed in range(4):
        desk.ask(one.id, seed, label="cat", settings={"steps": 3})
    desk.run()
    assert one.counters.mismatches == 0 and one.counters.calls == 3


def test_what_cannot_begin_fails_its_work_alone(run_of: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run_of("flow")
    wanted = images_of(path, range(4))
    desk = Desk(one := serve(path))
    honest = flights.Drawing

    def drawing(model: Any, condition: Any, settings: Any, draws: Draws) -> Any:
        if 21 in draws.seeds:
            raise LimnerError("This does not fit.")
        return honest(model, condition, settings, draws)

    monkeypatch.setattr(flights, "Drawing", drawing)
    alone = desk.ask(one.id, 21, 22, settings=PLAIN)
    desk.run(1)
    assert desk.scheduler.idle and desk.scheduler.lanes[one.id].empty and one.counters.calls == 0
    failed = desk.failure(alone)
    assert (failed.status, failed.message) == (400, "This does not fit.")
    bad = desk.ask(one.id, 21, 22, settings=PLAIN)
    asked = [desk.ask(one.id, seed, settings=PLAIN) for seed in range(4)]
    desk.run()
    assert [desk.images(work) for work in asked] == wanted and desk.kinds(bad) == [
        "accepted",
        "failed",
        "ended",
    ]
