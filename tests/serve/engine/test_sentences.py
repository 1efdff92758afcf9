"""What a client is told of an error: names of JSON, and the parameter that it is about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limner.serve.engine.sentences import told
from limner.settings import LimnerError
from tests.serve.engine.runs import Desk, serve

RunOf = Callable[..., Path]


@pytest.mark.parametrize(
    ("words", "said", "param"),
    [
        ("--autoguidance needs a run.", "autoguidance needs a run.", "autoguidance"),
        ("--sigma-min 3 must be below --sigma-max 2.", "sigma_min 3 must be below sigma_max 2.", "sigma_min"),
        (
            "Trained with --model.levels shared, so it takes no --history-guidance.",
            "Trained with model.levels shared, so it takes no history_guidance.",
            "history_guidance",
        ),
        ("There is no label '--size' here.", "There is no label '--size' here.", None),
        ("A well-known - or -- unknown thing.", "A well-known - or -- unknown thing.", None),
    ],
)
def test_flags_become_fields(words: str, said: str, param: str | None) -> None:
    assert told(LimnerError(words)) == (said, param)


@pytest.mark.parametrize(
    ("changes", "asked", "param"),
    [
        ({}, {"settings": {"guidance": 2.0, "autoguidance": "other"}}, "autoguidance"),
        ({"classes": ()}, {"settings": {"guidance": 3.0}}, "guidance"),
        ({}, {"settings": {"steps": 0}}, "steps"),
        ({}, {"prompt": "a cat"}, "prompt"),
        ({"classes": ()}, {"label": "cat"}, "label"),
    ],
)
def test_what_an_engine_refuses(
    changes: dict[str, Any], asked: dict[str, Any], param: str, run_of: RunOf
) -> None:
    one, other = serve(run_of("flow", **changes)), serve(run_of("ddpm"))
    other.id = "other"
    desk = Desk(one, other)
    failed = desk.failure(desk.ask(one.id, 1, **asked))
    assert (failed.status, failed.param) == (400, param)
    assert "--" not in failed.message and param in failed.message
