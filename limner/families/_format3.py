"""What runs of format 3 meant by settings that they lack, where format 4 has other defaults; weights are as named."""

from collections.abc import Mapping
from typing import Any

Settings = dict[str, Any]


def settings(run: Mapping[str, Any], spec: Mapping[str, Any]) -> Settings:
    """A run's JSON of format 3 -> of format 4; what is unknown stays, for the reader to refuse by name."""
    changed: Settings = dict(run)
    if isinstance(run.get("data"), dict):  # else the images would not be those of the training
        changed["data"] = {**run["data"], "filter": "quick"}
    if run.get("family") == "stylegan2":
        model = dict(run["model"])  # both players had mapping networks of one depth
        changed["model"] = {**model, "discriminator_mapping": model.get("mapping", 8), "mean_decay": 0.998}
    return changed


def weight(family: str, name: str) -> str:
    return name
