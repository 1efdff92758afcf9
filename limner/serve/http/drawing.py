"""Requests that draw: generations, edits and variations."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from limner.fields import nearest
from limner.serve.http.answers import Drawn
from limner.serve.http.asked import Asked
from limner.serve.http.pictures import PIXELS
from limner.serve.http.reading import Reading, listed
from limner.serve.http.values import LARGEST, bad, unsupported
from limner.serve.messages import Form, Format, Work

SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)
# Settings of sampling that do nothing: a mask is repainted by a solver of its own, from pure noise.
_IDLE_WITHOUT_PICTURE = ("strength",)
_IDLE_WITHOUT_MASK = ("repaints",)
_IDLE_WITH_MASK = ("strength", "solver")
CLOSE = 0.4  # strength of input_fidelity=high
LARGEST_SIDE = 4096  # of what is resized


def draw(request: Reading) -> Asked:
    """What a request to draw asks for. Raises ApiError 400."""
    values, card = request.values, request.card
    _check_pictures(request)
    prompt, label, revised = _shows(request)
    settings = _settings(request)
    seeds, between = _seeds(request)
    scale, quality = request.scale_steps(settings)
    stream = bool(values.get("stream"))
    partials = values.get("partial_images", 0)
    if partials and not (stream or request.job):
        partials = 0
        request.ignore("partial_images")
    for name in ("moderation", "style"):
        if name in values and name not in settings:
            request.ignore(name)
    if stream and values.get("response_format") == "url":
        request.ignore("response_format")
    form = written(request, *_size(request))
    if request.defaults.metadata:
        said = {"model": card.id, "prompt": prompt, "label": label, "seeds": seeds, "settings": settings}
        form = replace(form, metadata=json.dumps({name: v for name, v in said.items() if v is not None}))
    work = Work(
        request.engine.number(), card.id, request.caller.turn(request.identifier), "draw", seeds, between, prompt,
        label, settings, scale, partials, form, request.seconds,
        tuple(picture.data for picture in request.pictures), request.mask.data if request.mask else b"",
    )  # fmt: skip
    answer = Drawn(
        work, card, request.table.events, quality, revised, request.identifier,
        request.defaults.keep if values.get("response_format") == "url" else None,
    )  # fmt: skip
    return Asked(request.table.route, work, card, answer.body, stream, answer.event, request.headers())


def _check_pictures(request: Reading) -> None:
    reads, pictures, mask = request.card.reads, request.pictures, request.mask
    if not pictures:
        if "given" in reads:
            raise bad("This model makes images from pictures: send one as image of an edit.", "model")
        return
    if not {"image", "given"} & set(reads):
        raise unsupported(
            "This model cannot start from a picture: ask for a generation, or another model.", "image"
        )
    if mask is None:
        return
    if "mask" not in reads:
        raise unsupported("This model takes no mask: leave it out, or choose another model.", "mask")
    if not mask.alpha:
        message = "mask has no transparency: make it transparent where the image is to be drawn anew."
        raise bad(message, "mask", "invalid_image")
    image = pictures[0]
    # A mask without a word of its own on how it is turned may lie as its image is stored.
    as_stored = mask.orientation == 1 and mask.stored == image.stored
    if (mask.height, mask.width) != (image.height, image.width) and not as_stored:
        raise bad(
            f"mask is {mask.width}x{mask.height} and image {image.width}x{image.height}: "
            "give both the same size.", "mask", "invalid_image",
        )  # fmt: skip


def _shows(request: Reading) -> tuple[str | None, str | None, str | None]:
    """The text and the class that the images show, and what the answer says of the prompt."""
    card, values = request.card, request.values
    prompt, label = values.get("prompt"), values.get("label")
    named = "label" in card.reads and bool(card.labels)
    if label is not None and not named:
        raise unsupported("This model has no classes: leave label out.", "label")
    if "text" in card.reads:
        return prompt, _label(request, label, "label") if label is not None else None, None
    if named and label is None and prompt is not None:
        return None, _label(request, prompt, "prompt"), prompt
    if label is not None:
        label = _label(request, label, "label")
        if prompt and prompt != label:
            request.ignore("prompt")
        return None, label, label
    if prompt:
        request.ignore("prompt")
    return None, None, "Not used: this model draws without a prompt." if prompt is not None else None


def _label(request: Reading, name: str, param: str) -> str:
    labels = request.card.labels
    if name in labels:
        return name
    hint = nearest(name[:64], labels) or listed(labels)
    raise bad(f"{param} must be the name of a class of this model.{hint}", param)


def _settings(request: Reading) -> dict[str, Any]:
    settings = request.settings()
    if fidelity := request.values.get("input_fidelity"):
        able = request.pictures and request.mask is None and request.knob("strength") is not None
        if not able or "strength" in settings:
            request.ignore("input_fidelity")
        elif fidelity == "high":
            settings["strength"] = CLOSE
    idle: tuple[str, ...] = _IDLE_WITHOUT_PICTURE if not request.pictures else ()
    idle += _IDLE_WITH_MASK if request.mask is not None else _IDLE_WITHOUT_MASK
    for name in idle:
        if name in settings:
            request.ignore(name)
    return settings


def _seeds(request: Reading) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    values = request.values
    n = values.get("n", 1)
    if (ends := values.get("between")) is not None:
        if "seed" in values:
            raise bad("seed and between exclude each other: give one of them.", "between")
        if n < 2:
            raise bad("between needs at least two images: set n to 2 or more.", "n")
        return (ends[0],) * n, (ends[0], ends[1])
    first = request.seed()
    if first + n - 1 > LARGEST:
        raise bad(f"seed is out of range: with {n} images, choose {LARGEST - n + 1} or less.", "seed")
    return tuple(range(first, first + n)), None


def _size(request: Reading) -> tuple[int, int]:
    """Height and width that the images are resized to; 0: as they are drawn."""
    card, size = request.card, request.values.get("size") or "auto"
    own = f"{card.width}x{card.height}"
    if size in ("auto", own):
        return 0, 0
    match = SIZE.fullmatch(size)
    if match is None:
        raise bad(f"size must be WIDTHxHEIGHT or auto: choose {own}.", "size")
    width, height = int(match[1]), int(match[2])
    if not request.defaults.resize:
        raise bad(f"This model draws {own} only: choose that size, or auto.", "size")
    if max(width, height) > LARGEST_SIDE or width * height > PIXELS:
        raise bad(f"size is out of range: choose up to {LARGEST_SIDE} pixels a side.", "size")
    if abs(width * card.height - height * card.width) >= max(card.height, card.width):
        raise bad(f"size has other proportions than the model's {own}: choose a multiple of it.", "size")
    return height, width


def written(request: Reading, height: int = 0, width: int = 0) -> Form:
    """How the answer's images are written. Raises ApiError 400 for what the model or the format lacks."""
    values, card = request.values, request.card
    clips = card.frames > 1
    format: Format = values.get("output_format") or ("webp" if clips else "png")
    if clips and format != "webp":
        raise bad("This model draws clips, which are written as webp: choose that.", "output_format")
    background = values.get("background", "auto")
    if background == "transparent":
        if card.channels not in (2, 4):
            raise bad(
                "This model draws no transparency: choose opaque, or leave background out.", "background"
            )
        if format == "jpeg":
            raise bad("jpeg has no transparency: choose png or webp.", "background")
    if "output_compression" in values and format == "png":
        request.ignore("output_compression")
    compression = values.get("output_compression", 100)
    return Form(format, compression, background != "opaque", height, width)
