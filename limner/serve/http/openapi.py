"""The OpenAPI 3.1 document, made of the tables that requests are read by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limner.serve.http.tables import TABLES, Table, knob_field
from limner.serve.messages import Card
from limner.settings import __version__

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
INPUT = {"type": "string", "description": "a picture as data:image/png;base64, (or jpeg, or webp)"}
JSON = "application/json"
FORM = "multipart/form-data"


def document(cards: Mapping[str, Card], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Of the routes that ask a model, with the settings of those that are served; ``more``: further paths."""
    paths: dict[str, Any] = {table.path: {"post": _operation(table, cards)} for table in TABLES.values()}
    paths["/v1/models"] = {"get": _get("list_models", "What the served models are and can do.")}
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{id}"] = {"get": {**_get("get_model", "One of them."), "parameters": [id]}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Limner", "version": __version__},
        "paths": paths | dict(more or {}),
        "components": {"schemas": {"Error": ERROR}},
    }


def _get(name: str, help: str) -> dict[str, Any]:
    return {"operationId": name, "summary": help, "responses": _responses(False)}


def _operation(table: Table, cards: Mapping[str, Card]) -> dict[str, Any]:
    kind = JSON if table.pictures is None else FORM
    return {
        "operationId": table.route,
        "summary": table.help,
        "requestBody": {"required": True, "content": {kind: {"schema": schema(table, cards)}}},
        "responses": _responses(table.streams),
    }


def schema(table: Table, cards: Mapping[str, Card]) -> dict[str, Any]:
    """JSON Schema of a request: what all models take, and what some of them do."""
    properties = {field.name: field.schema() for field in table.fields}
    required = [field.name for field in table.fields if field.required]
    for name, found in _settings(table, cards).items():
        properties.setdefault(name, found[0] if len(found) == 1 else {"anyOf": found})
    for name, (least, most) in (table.pictures or {}).items():
        one = {"type": "string", "contentMediaType": "application/octet-stream"}
        properties[name] = (
            one if most == 1 else {"type": "array", "items": one, "minItems": least, "maxItems": most}
        )
        required += [name] if least else []
    if table.inputs:
        properties["input"] = {"anyOf": [INPUT, {"type": "array", "items": INPUT, "minItems": 1}]}
        required += ["input"]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _settings(table: Table, cards: Mapping[str, Card]) -> dict[str, list[dict[str, Any]]]:
    """The different schemas of each setting, over the models that can do what the route asks."""
    found: dict[str, list[dict[str, Any]]] = {}
    for card in cards.values():
        for knob in card.knobs if table.can in card.can and table.can in ("draw", "apply") else ():
            one = knob_field(knob).schema()
            if one not in found.setdefault(knob.name, []):
                found[knob.name].append(one)
    return found


def _responses(streams: bool) -> dict[str, Any]:
    said: dict[str, Any] = {JSON: {"schema": {"type": "object"}}}
    if streams:
        said["text/event-stream"] = {"schema": {"type": "string"}}
    error = {
        "description": "What is wrong.",
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    return {"200": {"description": "What was asked for.", "content": said}, "default": error}
