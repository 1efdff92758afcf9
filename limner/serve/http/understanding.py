"""Requests about pictures that a person sends: embeddings, classes, and pictures made from them."""

from __future__ import annotations

from typing import Any

from limner.serve.http.answers import Applied, Classified, Embedded
from limner.serve.http.asked import Asked
from limner.serve.http.drawing import written
from limner.serve.http.pictures import Picture, from_data_url, look
from limner.serve.http.reading import Reading
from limner.serve.http.tables import IGNORED_BY_APPLY
from limner.serve.http.values import bad
from limner.serve.messages import Work


def embed(request: Reading) -> Asked:
    """What a request for embeddings asks for. Raises ApiError."""
    values, card = request.values, request.card
    pictures = _inputs(request, values["input"])
    if values.get("dimensions", card.features) != card.features:
        raise bad(f"This model has {card.features} dimensions: choose that, or leave it out.", "dimensions")
    work = Work(
        request.engine.number(), card.id, request.caller.turn(request.identifier), "embed",
        seconds=request.seconds, pictures=tuple(picture.data for picture in pictures),
    )  # fmt: skip
    answer = Embedded(work, card, values.get("encoding_format") == "base64")
    return Asked("embedding", work, card, answer.body, headers=request.headers())


def _inputs(request: Reading, given: Any) -> list[Picture]:
    limits = request.defaults.limits
    if given is None:
        raise bad(
            "input is missing: give pictures as data:image/png;base64.", "input", "missing_required_parameter"
        )
    texts = given if isinstance(given, list) else [given]
    if not texts:
        raise bad("input is empty: give at least one picture.", "input")
    if not all(isinstance(text, str) for text in texts):
        message = (
            "input must be pictures as data:image/png;base64, one text or a list of them: no tokens are read."
        )
        raise bad(message, "input", "invalid_type")
    if len(texts) > limits.files:
        raise bad(f"input holds too many pictures: {limits.files} are the most.", "input")
    pictures, left = [], limits.pictures
    for text in texts:
        picture = look(from_data_url(text, "input", left), "input")
        left -= len(picture.data)
        pictures.append(picture)
    return pictures


def classify(request: Reading) -> Asked:
    """What a request for classes asks for."""
    work = Work(
        request.engine.number(), request.card.id, request.caller.turn(request.identifier), "classify",
        seconds=request.seconds, pictures=tuple(picture.data for picture in request.pictures),
    )  # fmt: skip
    return Asked(
        "classify", work, request.card, Classified(work, request.card).body, headers=request.headers()
    )


def apply(request: Reading) -> Asked:
    """What a request for pictures made from pictures asks for. Picture i is made by seed + i."""
    values, card = request.values, request.card
    settings, first = request.settings(), request.seed()
    for field in IGNORED_BY_APPLY:
        if values.get(field.name):
            request.ignore(field.name)
    work = Work(
        request.engine.number(), card.id, request.caller.turn(request.identifier), "apply",
        tuple(range(first, first + len(request.pictures))), settings=settings, form=written(request),
        seconds=request.seconds, pictures=tuple(picture.data for picture in request.pictures),
    )  # fmt: skip
    keep = request.defaults.keep if values.get("response_format") == "url" else None
    answer = Applied(work, card, keep)
    return Asked("apply", work, card, answer.body, headers=request.headers())
