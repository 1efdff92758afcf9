"""What files of format 1 call settings and weights, and what they are called now. New families add nothing.

``SETTINGS`` and ``WEIGHTS`` are by family, ``CHANGED`` holds what is more than another name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Settings = dict[str, Any]

# Dotted paths in the family's config: from -> to. A whole table may move too.
_TEXT = {"text_width": "text.width", "text_layers": "text.layers", "text_length": "text.length"}
SETTINGS: dict[str, dict[str, str]] = {
    "flow": {**_TEXT},
    "dit": {**_TEXT},
    "latent": {**_TEXT},
    "meanflow": {**_TEXT, "drop_condition": "condition_dropout"},
    "drifting": {**_TEXT, "drop_condition": "condition_dropout"},
}

# Regular expressions for names of weights: pattern -> replacement, in this order.
_EMBEDDER = {
    r"^(network|generator)\.(label|text)\.": r"\1.embedder.\2.",
    r"^(network|generator)\.pooled\.": r"\1.embedder.pooled_projection.",
    r"\.text\.slots$": ".text.queries",
}
WEIGHTS: dict[str, dict[str, str]] = {
    "flow": {**_EMBEDDER},
    "dit": {**_EMBEDDER},
    "latent": {**_EMBEDDER},
    "meanflow": {**_EMBEDDER},
    "drifting": {**_EMBEDDER},
}

# (the family's config, {"height": ..., "width": ..., ...} of the images) -> None; runs before SETTINGS, in place.
CHANGED: dict[str, Callable[[Settings, Mapping[str, Any]], None]] = {}

# Dotted paths in the run itself, for every family: training, data.
RUN: dict[str, str] = {}


def settings(run: Mapping[str, Any], spec: Mapping[str, Any]) -> Settings:
    """A run's JSON of format 1 -> of format 2; what is unknown stays, for the reader to refuse by name."""
    changed: Settings = _copy(run)
    family, model = changed.get("family"), changed.get("model")
    if isinstance(model, dict):
        if family in CHANGED:
            CHANGED[family](model, spec)
        for old, new in SETTINGS.get(str(family), {}).items():
            _move(model, old, new)
    for old, new in RUN.items():
        _move(changed, old, new)
    return changed


def weight(family: str, name: str) -> str:
    """The name now of a weight that format 1 called ``name``."""
    for pattern, new in WEIGHTS.get(family, {}).items():
        name = re.sub(pattern, new, name)
    return name


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(entry) for key, entry in value.items()}
    return [_copy(entry) for entry in value] if isinstance(value, list) else value


def _move(table: Settings, old: str, new: str) -> None:
    """Rename the entry at a dotted path, if there is one."""
    *way, last = old.split(".")
    place: Any = table
    for key in way:
        place = place.get(key) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        return
    value = place.pop(last)
    *way, last = new.split(".")
    place = table
    for key in way:
        place = place.setdefault(key, {})
    place[last] = value
