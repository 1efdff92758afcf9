"""The same request gives the same bytes: alone, beside others, at any place, after a restart, after a cancel."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limner.inference.pipeline import Pipeline
from tests.serve.engine.runs import Desk, serve, smooth

MASK = (torch.arange(16) > 7).float().expand(1, 1, 16, 16)
TEXTS = "a cat", "", "a red square, and more that nobody asked for " * 5, "一只猫", "a b c " * 40
DENOISERS = "flow", "dit", "ddpm", "edm", "latent"
OTHERS = "dcgan", "vae", "drifting", "meanflow", "masked"


def requests(model: Any, n: int = 10) -> list[dict[str, Any]]:
    """Requests that differ in all that the model reads."""
    asked: list[dict[str, Any]] = []
    for i in range(n):
        fields: dict[str, Any] = {"client": str(i % 3)}
        if "label" in model.follows and i % 3:
            fields["label"] = ("cat", "owl")[i % 2]
        if "text" in model.follows and i % 5:
            fields["prompt"] = TEXTS[i % len(TEXTS)]
        if "image" in model.follows and i % 4 == 1:
            fields["image"] = smooth(i)
            if "mask" in model.follows and i % 8 == 5:
                fields["mask"] = MASK
        asked.append(fields)
    return asked


KNOBS: tuple[dict[str, Any], ...] = (
    {"steps": 3, "solver": "unipc"},
    {"steps": 2, "solver": "heun"},
    {"steps": 4, "guidance": 3.0},
    {"steps": 3, "solver": "dpm2m_sde", "guidance": 1.0},
    {"steps": 2, "strength": 0.4, "repaints": 2},
    {"steps": 3, "solver": "ancestral"},
    {"steps": 5, "solver": "dpm3m", "guidance_low": 0.3},
)


def check(path: Path, knobs: Callable[[int], dict[str, Any]]) -> None:
    one = serve(path)
    asked = [fields | {"settings": knobs(i)} for i, fields in enumerate(requests(one.model))]
    alone = []
    for i, fields in enumerate(asked):
        desk = Desk(one)
        work = desk.ask(one.id, 10 * i, 10 * i + 1, **fields)
        desk.run()
        assert desk.kinds(work)[-3:] == ["image", "image", "ended"] or i, desk.events[work]
        alone.append(desk.images(work))
        assert len(alone[-1]) == 2 and alone[-1][0] != alone[-1][1]
    for restarted in (one, serve(path)):
        desk, order = Desk(restarted), list(range(len(asked)))
        random.Random(1).shuffle(order)
        works: dict[int, int] = {}
        for i in order:
            works[i] = desk.ask(one.id, 10 * i, 10 * i + 1, **asked[i])
            left = desk.ask(one.id, 999 + i, **asked[i - 1])  # a neighbour that goes away
            desk.run(2)
            desk.scheduler.cancel(left)
        desk.run()
        assert [desk.images(works[i]) == alone[i] for i in order] == [True] * len(order)


@pytest.mark.parametrize("family", DENOISERS)
def test_flights_do_not_depend_on_each_other(family: str, run_of: Callable[..., Path]) -> None:
    check(run_of(family), lambda i: KNOBS[i % len(KNOBS)])


def test_a_longer_prompt_beside_it_changes_nothing(run_of: Callable[..., Path]) -> None:
    check(run_of("flow", classes=(), captions=True), lambda i: KNOBS[i % len(KNOBS)])


@pytest.mark.parametrize("family", OTHERS)
def test_whole_drawings_do_not_depend_on_each_other(family: str, run_of: Callable[..., Path]) -> None:
    check(run_of(family), lambda i: {"steps": 1 + i % 2} if family == "meanflow" else {})


def test_a_model_that_draws_by_itself_with_texts(run_of: Callable[..., Path]) -> None:
    check(run_of("meanflow", classes=(), captions=True), lambda i: {})


def test_another_run_that_guides(run_of: Callable[..., Path]) -> None:
    strong, weak = serve(run_of("flow")), serve(run_of("flow", seed=3))
    settings = {"autoguidance": weak.id, "steps": 3, "guidance": 2.0}
    alone = Desk(strong, weak)
    work = alone.ask(strong.id, 5, label="cat", settings=settings)
    alone.run()
    beside = Desk(strong, weak)
    several = [beside.ask(strong.id, seed, label="cat", settings=settings) for seed in (4, 5, 6, 7, 8)]
    several += [beside.ask(weak.id, seed, label="cat") for seed in (4, 5)]
    beside.run()
    assert beside.images(several[1]) == alone.images(work) != beside.images(several[0])
    image = alone.events[work][-2]
    assert image.evaluations == 6 and image.fingerprint == f"{strong.fingerprint}+{weak.fingerprint}"
    assert sum(weak.counters.rows.values()) and weak.counters.rows[1] >= 3


@pytest.mark.parametrize("family", ["flow", "edm", "meanflow", "dcgan"])
def test_an_image_is_that_of_limner_sample(family: str, run_of: Callable[..., Path]) -> None:
    path = run_of(family)
    options: dict[str, Any] = {"steps": 4} if family != "dcgan" else {}
    pipeline = Pipeline(path, "cpu")
    pipeline.precision = "float32"
    wanted = pipeline.tensors(3, seed=7, label="dog", **options)
    desk = Desk(one := serve(path))
    work = desk.ask(one.id, 7, 8, 9, label="dog", settings=options)
    desk.run()
    for index, data in desk.images(work).items():
        found = torch.frombuffer(bytearray(data), dtype=torch.float32).view(wanted[0].shape)
        torch.testing.assert_close(found, wanted[index], rtol=0, atol=1e-4)


def test_quick_takes_what_there_is(run_of: Callable[..., Path]) -> None:
    one = serve(run_of("flow"), "quick")
    desk = Desk(one)
    desk.ask(one.id, 1, settings={"guidance": 1.0, "steps": 2})
    assert one.rows.counts == tuple(range(1, one.rows.most + 1))
    desk.run()
    assert one.fingerprint != serve(run_of("flow")).fingerprint


def test_whole_requests_begin_together(run_of: Callable[..., Path]) -> None:
    """For comparison: what comes later waits until all that began have ended."""
    one = serve(run_of("flow"), "whole")
    desk = Desk(one)
    first = [desk.ask(one.id, i, settings={"steps": 2 + 6 * i, "guidance": 1.0}) for i in range(2)]
    desk.run(1)
    late = desk.ask(one.id, 9, settings={"steps": 2, "guidance": 1.0})
    desk.run(6)
    assert desk.kinds(first[0])[-1] == "ended" and desk.kinds(late) == ["accepted"]
    desk.run(4)
    assert desk.kinds(first[1])[-1] == desk.kinds(late)[-1] == "ended"


def test_single_images_wait_for_each_other(run_of: Callable[..., Path]) -> None:
    """For comparison: the second image begins when the first has ended."""
    for family, steps in (("flow", {"steps": 3, "guidance": 1.0}), ("dcgan", {})):
        desk = Desk(one := serve(run_of(family), "single"))
        first, late = desk.ask(one.id, 1, settings=steps), desk.ask(one.id, 2, settings=steps)
        while "ended" not in desk.kinds(first):
            assert desk.kinds(late) == ["accepted"]
            desk.run(1)
        desk.run()
        assert desk.kinds(late)[-1] == "ended" and set(desk.scheduler.reports()[one.id].rows) == {1}


def test_between_two_seeds(run_of: Callable[..., Path]) -> None:
    one = serve(run_of("dcgan"))
    desk = Desk(one)
    way = desk.ask(one.id, 3, 4, 5, between=(3, 8), label="cat")
    ends = [desk.ask(one.id, seed, label="cat") for seed in (3, 8)]
    desk.run()
    first, middle, last = (
        torch.frombuffer(bytearray(desk.images(way)[i]), dtype=torch.float32) for i in range(3)
    )
    one_end, other_end = (
        torch.frombuffer(bytearray(desk.images(end)[0]), dtype=torch.float32) for end in ends
    )
    torch.testing.assert_close(first, one_end, rtol=0, atol=1e-5)
    torch.testing.assert_close(last, other_end, rtol=0, atol=1e-5)
    assert not torch.allclose(middle, first, atol=1e-3)


def test_long_texts_have_calls_of_their_own(run_of: Callable[..., Path]) -> None:
    """What is short is not padded as far as the longest."""
    one = serve(run_of("flow", classes=(), captions=True))
    embed = one.model.embed
    assert one.measured and one.measured.longer and embed.short == 32 < embed.length
    desk = Desk(one)
    for text in ("a cat", "a dog", "a b c " * 40):
        desk.ask(one.id, 1, prompt=text, settings={"steps": 2, "guidance": 1.0})
    desk.run()
    lengths = {text: rows.tokens.shape[1] for (text, _), rows in embed.kept.items() if text}
    assert lengths["a cat"] == lengths["a dog"] == 32 and max(lengths.values()) == embed.length
    assert one.counters.calls == 2 and one.counters.rows == {3: 2}
