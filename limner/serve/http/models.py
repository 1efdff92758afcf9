"""What served models are and can do, as /v1/models tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limner.fields import nearest
from limner.serve.http.errors import ApiError
from limner.serve.http.reading import listed
from limner.serve.http.tables import knob_field
from limner.serve.messages import Card, Knob

STARTING = ApiError(
    503, "The models are being loaded: try again.", "engine_starting", headers={"Retry-After": "1"}
)


def model(card: Card) -> dict[str, Any]:
    """The object of one model: the API's fields, then ours."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "limner",
        "family": card.family,
        "size": f"{card.width}x{card.height}",
        "channels": card.channels,
        "frames": card.frames,
        "can": list(card.can),
        "reads": list(card.reads),
        "labels": list(card.labels),
        "knobs": [_knob(knob) for knob in card.knobs],
        "features": card.features,
        "scale": card.scale,
        "digest": card.digest,
        "system_fingerprint": card.fingerprint,
    }


def _knob(knob: Knob) -> dict[str, Any]:
    """As it is read: with the bounds of this server where those of the family are wider."""
    field = knob_field(knob)
    said = {
        "name": field.name,
        "type": field.type,
        "default": list(field.default) if isinstance(field.default, tuple) else field.default,
        "help": field.help,
        "choices": list(field.choices) or None,
        "minimum": None if field.above else field.least,
        "exclusive_minimum": field.least if field.above else None,
        "maximum": None if field.below else field.most,
        "exclusive_maximum": field.most if field.below else None,
        "model": knob.model or None,
    }
    return {name: value for name, value in said.items() if value is not None or name == "default"}


def models(cards: Mapping[str, Card]) -> dict[str, Any]:
    """All models. Raises ApiError 503 before they are loaded."""
    if not cards:
        raise STARTING
    return {"object": "list", "data": [model(card) for card in cards.values()]}


def one_model(cards: Mapping[str, Card], id: str) -> dict[str, Any]:
    """One model. Raises ApiError 404 with the nearest, or 503 before they are loaded."""
    if not cards:
        raise STARTING
    if id not in cards:
        hint = nearest(id[:64], cards) or listed(tuple(cards))
        raise ApiError(404, f"There is no model of that name here.{hint}", "model_not_found", "model")
    return model(cards[id])
