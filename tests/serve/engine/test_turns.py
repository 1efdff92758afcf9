"""Who is drawn when: events, clients, models, cancels and deadlines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limner.serve.engine import flights
from limner.serve.engine.rows import Rows
from tests.serve.engine.runs import Desk, serve, smooth

PLAIN: dict[str, Any] = {"guidance": 1.0, "steps": 4}
RunOf = Callable[..., Path]


def test_the_events_of_a_work(run_of: RunOf) -> None:
    desk = Desk(one := serve(run_of("flow")))
    work = desk.ask(one.id, 4, 5, label="cat", partials=3, settings={"steps": 8})
    desk.run()
    assert desk.kinds(work)[0] == "accepted" and desk.kinds(work)[-1] == "ended"
    for index in (0, 1):
        mine = [event for event in desk.events[work] if event.index == index]
        assert [event.kind for event in mine] == ["begun", "partial", "partial", "partial", "image"]
        assert [event.number for event in mine[1:4]] == [0, 1, 2]
        assert len({event.data for event in mine[1:]}) == 4, "each is further than the one before"
        assert mine[-1].seed == 4 + index and mine[-1].seconds >= 0
        assert mine[-1].fingerprint == one.fingerprint
    accepted, *_ = desk.events[work]
    assert accepted.evaluations == 16 == desk.events[work][-2].evaluations
    report = desk.scheduler.reports()[one.id]
    assert (report.images, report.calls, report.rows) == (2, 8, {4: 8})
    assert report.flying == report.waiting == 0 and report.seconds > 0


def test_the_first_intermediate_image_comes_after_the_first_step(run_of: RunOf) -> None:
    desk = Desk(one := serve(run_of("flow")))
    work = desk.ask(one.id, 4, label="cat", partials=2, settings={"steps": 9})
    came = []
    for call in range(1, 10):
        desk.run(1)
        came += [call] * (desk.kinds(work).count("partial") - len(came))
    assert came == [1, 5]


EVALUATIONS: list[tuple[dict[str, Any], int]] = [
    ({"solver": "heun", "steps": 3, "guidance": 1.0}, 5),
    ({"solver": "heun", "steps": 3, "guidance": 2.0}, 10),
    ({"solver": "unipc", "steps": 3, "guidance": 1.0}, 3),
    ({"solver": "ancestral", "steps": 3, "guidance": 2.0, "guidance_low": 1.0}, 3),
    ({"steps": 10, "strength": 0.3, "guidance": 1.0}, 3),
    ({"steps": 4, "repaints": 3, "guidance": 1.0}, 12),
]


@pytest.mark.parametrize(("settings", "wanted"), EVALUATIONS)
def test_evaluations_are_known_before(settings: dict[str, Any], wanted: int, run_of: RunOf) -> None:
    desk = Desk(one := serve(run_of("ddpm")))
    given: dict[str, Any] = {"label": "cat"}
    if "strength" in settings or "repaints" in settings:
        given["image"] = smooth(1)
    if "repaints" in settings:
        given["mask"] = torch.ones(1, 1, 16, 16)
    work = desk.ask(one.id, 1, settings=settings, **given)
    desk.run()
    assert desk.events[work][0].evaluations == desk.events[work][-2].evaluations == wanted


@pytest.mark.parametrize(("scale", "given", "wanted"), [(0.5, {}, 8), (4, {"steps": 3}, 12), (0.01, {}, 1)])
def test_quality_scales_the_steps(scale: float, given: dict[str, int], wanted: int, run_of: RunOf) -> None:
    desk = Desk(one := serve(run_of("flow")))
    work = desk.ask(one.id, 1, scale_steps=scale, settings={"guidance": 1.0} | given)
    assert desk.events[work][0].evaluations == wanted


def test_steps_are_never_more_than_the_server_takes(run_of: RunOf) -> None:
    desk = Desk(one := serve(run_of("flow")))
    assert (
        desk.events[desk.ask(one.id, 1, scale_steps=4, settings=PLAIN | {"steps": 100})][0].evaluations == 250
    )
    assert desk.failure(desk.ask(one.id, 1, settings={"steps": 251})).status == 400


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("flow", {"label": "caat"}, 400, "cat"),
    ("flow", {"settings": {"solver": "zzz"}}, 400, "solver"),
    ("flow", {"settings": {"steps": 2.5}}, 400, "steps"),
    ("flow", {"settings": {"stepz": 2}}, 400, "steps"),
    ("flow", {"settings": {"guidance": float("nan")}}, 400, "guidance"),
    ("flow", {"settings": {"autoguidance": "/etc/passwd"}}, 400, "no model of this server"),
    ("flow", {"mask": torch.ones(1, 1, 16, 16)}, 400, "mask"),
    ("flow", {"image": smooth(1), "mask": torch.zeros(1, 1, 16, 16)}, 400, "nothing to draw"),
    ("dcgan", {"image": smooth(1)}, 400, "no picture"),
    ("bridge", {}, 400, "given pictures"),
    ("meanflow", {"settings": {"guidance": 50.0}}, 400, "guidance"),
    # levels that fall together, or that no float holds
    ("flow", {"settings": {"shift": 1e-30}}, 400, "shift"),
    ("edm", {"settings": {"rho": 1e-6}}, 400, "rho"),
    ("edm", {"settings": {"sigma_min": 1e-30, "rho": 1.0}}, 400, "sigma_min"),
    ("edm", {"settings": {"sigma_min": 0.00001, "sigma_max": 0.000010000000001}}, 400, "sigma_min"),
]


@pytest.mark.parametrize(("family", "fields", "status", "words"), REFUSED)
def test_what_is_refused(family: str, fields: dict[str, Any], status: int, words: str, run_of: RunOf) -> None:
    desk = Desk(one := serve(run_of(family)))
    work = desk.ask(one.id, 1, **fields)
    desk.run()
    failed = desk.failure(work)
    assert failed.status == status and words in failed.message and "image" not in desk.kinds(work)
    assert str(Path("/").resolve() / "etc") not in failed.message


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("meanflow", {"strength": 1e-30}),
        ("flow", {"shift": 0.001}),
        ("flow", {"shift": 1000.0}),
        ("edm", {"sigma_min": 1e-5, "sigma_max": 1e5, "rho": 1.0}),
        ("edm", {"sigma_min": 1e-5, "sigma_max": 1e5, "rho": 100.0}),
        ("edm", {"sigma_min": 79.9, "churn": 0.5}),
    ],
)  # fmt: skip
def test_the_ends_of_what_is_taken(family: str, settings: dict[str, Any], run_of: RunOf) -> None:
    """With a picture, with a part of it to draw anew, and without."""
    desk = Desk(one := serve(run_of(family)))
    given: list[dict[str, Any]] = [{}, {"image": smooth(1)}]
    if "mask" in one.model.follows:
        given.append({"image": smooth(1), "mask": torch.ones(1, 1, 16, 16)})
    works = [desk.ask(one.id, 1, settings={"steps": 3} | settings, **more) for more in given]
    desk.run()
    assert [len(desk.images(work)) for work in works] == [1] * len(works)


def test_an_unknown_model_is_not_found(run_of: RunOf) -> None:
    desk = Desk(serve(run_of("dcgan")))
    assert desk.failure(desk.ask("zzz", 1)).status == 404


def test_a_client_with_many_images_delays_nobody(run_of: RunOf) -> None:
    one = serve(run_of("flow"))
    one.rows = Rows((3, 4))
    desk = Desk(one)
    many = desk.ask(one.id, *range(64), settings=PLAIN, client="greedy")
    desk.run(2)
    few = desk.ask(one.id, 1, settings=PLAIN, client="modest")
    desk.run(4)
    assert desk.kinds(few)[-1] == "ended", "it joined the next call, and takes four"
    assert len(desk.images(many)) < 8
    desk.run()
    assert len(desk.images(many)) == 64


def test_with_too_many_clients_the_oldest_are_finished_first(run_of: RunOf) -> None:
    one = serve(run_of("flow"))
    one.rows = Rows((3, 4))
    desk = Desk(one)
    works = [desk.ask(one.id, i, settings=PLAIN, client=str(i)) for i in range(12)]
    ended = []
    for _ in range(3):
        desk.run(4)
        ended.append([i for i, work in enumerate(works) if desk.kinds(work)[-1] == "ended"])
    assert ended == [list(range(4)), list(range(8)), list(range(12))]


def test_models_take_turns(run_of: RunOf) -> None:
    one, other = serve(run_of("flow")), serve(run_of("meanflow"))
    desk = Desk(one, other)
    desk.ask(one.id, 1, settings=PLAIN | {"steps": 40})
    quick = desk.ask(other.id, 2)
    desk.run(10)
    assert desk.kinds(quick)[-1] == "ended" and 8 <= one.counters.calls < 10


def test_a_cancelled_row_is_gone_from_the_next_call(run_of: RunOf) -> None:
    desk = Desk(one := serve(run_of("flow")))
    works = [desk.ask(one.id, i, settings=PLAIN) for i in range(5)]
    desk.run(2)
    desk.scheduler.cancel(works[1])
    desk.scheduler.cancel(works[1])
    desk.run(1)
    assert one.counters.rows == {5: 2, 4: 1} and desk.kinds(works[1]) == ["accepted", "begun", "ended"]
    desk.run()
    assert desk.events[works[1]][-1].cancelled and one.counters.cancelled == 1
    assert all(len(desk.images(work)) == 1 for i, work in enumerate(works) if i != 1)


def test_a_batch_that_nobody_waits_for_ends(run_of: RunOf) -> None:
    one = serve(run_of("meanflow"))
    one.rows = Rows(tuple(range(1, 9)))
    desk = Desk(one)
    works = [desk.ask(one.id, i, settings={"steps": 50}) for i in range(3)]
    desk.run(2)
    desk.scheduler.cancel(works[0])
    desk.run(2)
    assert one.counters.rows == {3: 4}, "the others are drawn on"
    desk.scheduler.cancel(works[1])
    desk.scheduler.cancel(works[2])
    assert desk.scheduler.idle
    desk.run(3)
    assert one.counters.calls == 4 and not desk.images(works[1])
    again = desk.ask(one.id, 1)
    desk.run()
    assert len(desk.images(again)) == 1


@pytest.mark.parametrize("family", ["flow", "meanflow"])
def test_a_deadline_cancels(family: str, run_of: RunOf) -> None:
    now = 100.0
    desk = Desk(one := serve(run_of(family)), clock=lambda: now)
    late = desk.ask(one.id, 1, settings={"steps": 100}, seconds=5.0)
    slow = desk.ask(one.id, 2, settings={"steps": 20})
    desk.run(3)
    now = 105.0
    desk.run()
    assert desk.events[late][-1].cancelled and not desk.images(late)
    assert len(desk.images(slow)) == 1


def test_waiting_images_take_no_memory(run_of: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is not made before its turn."""
    made = []
    original = flights.Drawing

    def counted(*arguments: Any) -> Any:
        made.append(1)
        return original(*arguments)

    monkeypatch.setattr(flights, "Drawing", counted)
    one = serve(run_of("flow"))
    one.rows = Rows((3, 4))
    desk = Desk(one)
    desk.ask(one.id, *range(50), settings={"steps": 4}, label="cat")
    desk.run(2)
    assert len(made) <= 3
