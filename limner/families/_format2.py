"""What files of format 2 call settings that have another name in format 3; names of weights are the same."""

from collections.abc import Mapping
from typing import Any

Settings = dict[str, Any]

# Dotted paths in a run: value -> value.
VALUES: dict[str, dict[str, str]] = {"data.fit": {"stretch": "squash"}}


def settings(run: Mapping[str, Any], spec: Mapping[str, Any]) -> Settings:
    """A run's JSON of format 2 -> of format 3; what is unknown stays, for the reader to refuse by name."""
    changed: Settings = dict(run)
    for path, values in VALUES.items():
        table, name = path.split(".")
        found = changed.get(table)
        if isinstance(found, dict) and isinstance(value := found.get(name), str):
            changed[table] = {**found, name: values.get(value, value)}
    return changed


def weight(family: str, name: str) -> str:
    return name
