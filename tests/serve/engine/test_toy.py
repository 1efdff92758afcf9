"""A family that the engine has never heard of is drawn for as any other."""

from __future__ import annotations

from pathlib import Path

from limner import families
from limner.core import Generates, Model
from tests.serve.engine.runs import Desk, keep, made, serve


def test_every_toy_family_that_draws_is_served(toy: type[Model], tmp_path: Path) -> None:
    able = [name for name in ("painter", "mover", "toy") if hasattr(families.load(name), "sample")]
    assert "painter" in able and "mover" in able
    for name in able:
        one = serve(keep(made(name), tmp_path / name))
        assert isinstance(one.model, Generates) and not one.flies
        desk = Desk(one)
        alone = desk.ask(one.id, 5, partials=1)
        desk.run()
        together = [desk.ask(one.id, seed, partials=1) for seed in (3, 4, 5, 6)]
        desk.run()
        assert desk.images(together[2]) == desk.images(alone) != desk.images(together[0]), name
        assert desk.kinds(alone) == ["accepted", "begun", "partial", "image", "ended"]


def test_its_knobs_name_served_models_alone(toy: type[Model], tmp_path: Path) -> None:
    one, other = (serve(keep(made("painter"), tmp_path / name)) for name in ("one", "other"))
    desk = Desk(one, other)
    mixed = desk.ask("one", 5, settings={"other": "other", "steps": 2})
    refused = [
        desk.ask("one", 5, settings=settings) for settings in ({"other": "/tmp"}, {"picture": "/tmp/x"})
    ]
    desk.run()
    assert desk.kinds(mixed)[-2] == "image"
    assert desk.events[mixed][-2].fingerprint == f"{one.fingerprint}+{other.fingerprint}"
    for work in refused:
        assert desk.failure(work).status == 400 and "/tmp" not in desk.failure(work).message
