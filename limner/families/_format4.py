"""What runs of format 4 meant by settings that they lack, where format 5 has other defaults; weights are as named."""

from collections.abc import Mapping
from typing import Any

Settings = dict[str, Any]

READ_TEXTS = ("dit", "drifting", "flow", "latent", "meanflow")  # families that had a text encoder


def settings(run: Mapping[str, Any], spec: Mapping[str, Any]) -> Settings:
    """A run's JSON of format 4 -> of format 5; what is unknown stays, for the reader to refuse by name."""
    changed: Settings = dict(run)
    model = run.get("model")
    if (
        run.get("family") in READ_TEXTS
        and isinstance(model, dict)
        and isinstance(text := model.get("text", {}), dict)
    ):
        changed["model"] = {**model, "text": {**text, "pieces": "bytes"}}
    return changed


def weight(family: str, name: str) -> str:
    return name
