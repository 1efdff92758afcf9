"""Sentences as clients are told them: a setting has the name that it has in JSON, not that of its flag."""

from __future__ import annotations

import re

from limner.settings import LimnerError

FLAG = re.compile(r"(?<![\w'\"-])--([a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*)")


def as_fields(text: str) -> str:
    """A text that names flags, with the names of JSON: --sigma-min becomes sigma_min.

    What a run was trained with keeps its place: --model.condition-dropout becomes model.condition_dropout.
    """
    return FLAG.sub(lambda flag: flag[1].replace("-", "_"), text)


def told(error: LimnerError) -> tuple[str, str | None]:
    """The sentence of an error, and the parameter that it is about; None: it names none."""
    names = [name.replace("-", "_") for name in FLAG.findall(str(error))]
    return as_fields(str(error)), next((name for name in names if "." not in name), None)
