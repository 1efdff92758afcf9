"""What files of format 5 call settings that have another name in format 6; names of weights are the same."""

from collections.abc import Mapping
from typing import Any

from limner.settings import LimnerError

Settings = dict[str, Any]

GONE = ("pairs", "domain", "side_by_side")  # of the data


def settings(run: Mapping[str, Any], spec: Mapping[str, Any]) -> Settings:
    """A run's JSON of format 5 -> of format 6, whose sources name given pictures too; what is unknown stays.

    Raises LimnerError for given pictures of several sources of images, which a run of today cannot have.
    """
    changed: Settings = dict(run)
    data = run.get("data")
    if not isinstance(data, dict):
        return changed
    kept = {name: value for name, value in data.items() if name not in GONE}
    if half := data.get("side_by_side"):
        kept |= {"halves": True, "reverse": half == "right"}
    for old, way in {"pairs": "pairs", "domain": "domains"}.items():
        if source := data.get(old):
            if len(run["sources"]) != 1:
                raise LimnerError(
                    f"This run was trained with data.{old} on {len(run['sources'])} sources of images, and today's "
                    "Limner takes one: train it again, with the images in one folder."
                )
            changed["sources"] = [source, *run["sources"]]
            kept["given"] = way
    changed["data"] = kept
    return changed


def weight(family: str, name: str) -> str:
    return name
