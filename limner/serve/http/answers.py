"""What answers say, in the shapes of the openai package's types; further fields stand beside those."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from limner.serve.http.errors import ApiError
from limner.serve.http.pictures import look
from limner.serve.messages import Card, Event, Format, Work

NO_TOKENS = {
    "input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}  # fmt: skip

Keep = Callable[[bytes, Format], str]


def failure(event: Event) -> ApiError:
    """The error of an event that failed."""
    status = event.status if 400 <= event.status <= 599 else 500
    # The client asks again after 5xx: at once after a lost engine, never after work that took too long.
    headers = {503: {"Retry-After": "1"}, 504: {"x-should-retry": "false"}}.get(status, {})
    return ApiError(
        status, event.message or "The engine failed: try again.", event.code, event.param, headers
    )


def usage(events: Sequence[Event]) -> dict[str, Any]:
    """No tokens, but images, network evaluations and seconds."""
    images = [event for event in events if event.kind == "image"]
    return NO_TOKENS | {
        "images": len(images),
        "evaluations": sum(event.evaluations for event in images),
        "seconds": round(sum(event.seconds for event in images), 4),
    }


def fingerprint(events: Sequence[Event], card: Card) -> str:
    """All that the bytes depend on; two where it changed in between."""
    found = dict.fromkeys(event.fingerprint for event in events if event.fingerprint)
    return ", ".join(found) or card.fingerprint


def in_order(events: Sequence[Event], kind: str, number: int) -> list[Event]:
    """The events of a kind by index. Raises ApiError 500 unless there is one for each of ``number``."""
    found = {event.index: event for event in events if event.kind == kind}
    if sorted(found) != list(range(number)):
        raise ApiError(500, "The engine did not answer in full: try again.")
    return [found[index] for index in range(number)]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def place_of(image: Event, format: Format, keep: Keep | None) -> dict[str, Any]:
    """Where a picture is: at a path of this server, or in the answer itself."""
    return {"url": keep(image.data, format)} if keep else {"b64_json": text(image.data)}


def listed(
    answers: Sequence[Event], card: Card, kind: str, said: Callable[[Any], dict[str, Any]]
) -> dict[str, Any]:
    """What the engine said of each picture; ``said`` makes an entry's fields of its value."""
    return {
        "object": "list",
        "model": card.id,
        "data": [
            {"object": kind, "index": index, **said(answer.value)} for index, answer in enumerate(answers)
        ],
        "usage": {"prompt_tokens": 0, "total_tokens": 0, "images": len(answers)},
        "system_fingerprint": fingerprint(answers, card),
    }


@dataclass(frozen=True)
class Drawn:
    """The answer to a request that draws, whole or by events."""

    work: Work
    card: Card
    name: str  # of its events
    quality: str
    revised: str | None = None  # what became of the prompt
    identifier: str = ""
    keep: Keep | None = None  # None: images are in the answer itself

    def body(self, events: Sequence[Event]) -> dict[str, Any]:
        images = in_order(events, "image", len(self.work.seeds))
        return {
            "created": int(time.time()),
            "model": self.card.id,
            "data": [self._entry(image) for image in images],
            **self._form(),
            "usage": usage(images),
            "system_fingerprint": fingerprint(images, self.card),
            **({"safety_identifier": self.identifier} if self.identifier else {}),
        }

    def _entry(self, image: Event) -> dict[str, Any]:
        place = place_of(image, self.work.form.format, self.keep)
        if self.revised is not None:
            place["revised_prompt"] = self.revised
        return place | self._seed(image)

    def _seed(self, image: Event) -> dict[str, Any]:
        """The seed, or both seeds and how far the image lies between them."""
        if self.work.between is not None:
            share = image.index / (len(self.work.seeds) - 1)
            return {"between": list(self.work.between), "share": round(share, 6)}
        return {"seed": self.work.seeds[image.index] if image.seed is None else image.seed}

    def _form(self) -> dict[str, Any]:
        form, card = self.work.form, self.card
        clear = form.transparent and form.format != "jpeg" and card.channels in (2, 4)
        return {
            "background": "transparent" if clear else "opaque",
            "output_format": form.format,
            "quality": self.quality,
            "size": f"{form.width or card.width}x{form.height or card.height}",
        }

    def event(self, event: Event) -> tuple[str, dict[str, Any]] | None:
        """The server-sent event that an engine's event becomes."""
        if event.kind not in ("partial", "image"):
            return None
        name = f"{self.name}.{'completed' if event.kind == 'image' else 'partial_image'}"
        said = {"type": name, "created_at": int(time.time()), "b64_json": text(event.data), **self._form()}
        said |= {"index": event.index}
        if event.kind == "partial":
            return name, said | {"partial_image_index": event.number}
        if self.identifier:
            said["safety_identifier"] = self.identifier
        said |= {"usage": usage([event]), "system_fingerprint": fingerprint([event], self.card)}
        return name, said | self._seed(event)


@dataclass(frozen=True)
class Embedded:
    work: Work
    card: Card
    packed: bool = False  # float32 in base64

    def body(self, events: Sequence[Event]) -> dict[str, Any]:
        answers = in_order(events, "answer", len(self.work.pictures))
        return listed(answers, self.card, "embedding", lambda value: {"embedding": self._numbers(value)})

    def _numbers(self, numbers: Sequence[float]) -> str | list[float]:
        return text(struct.pack(f"<{len(numbers)}f", *numbers)) if self.packed else list(numbers)


@dataclass(frozen=True)
class Classified:
    work: Work
    card: Card

    def body(self, events: Sequence[Event]) -> dict[str, Any]:
        answers = in_order(events, "answer", len(self.work.pictures))
        return listed(answers, self.card, "classification", self._classes)

    @staticmethod
    def _classes(value: Sequence[tuple[str, float]]) -> dict[str, Any]:
        return {"classes": [{"label": label, "probability": share} for label, share in value]}


@dataclass(frozen=True)
class Applied:
    work: Work
    card: Card
    keep: Keep | None = None

    def body(self, events: Sequence[Event]) -> dict[str, Any]:
        images = in_order(events, "image", len(self.work.pictures))
        return {
            "created": int(time.time()),
            "model": self.card.id,
            "data": [self._entry(image) for image in images],
            "output_format": self.work.form.format,
            "usage": usage(images),
            "system_fingerprint": fingerprint(images, self.card),
        }

    def _entry(self, image: Event) -> dict[str, Any]:
        place = place_of(image, self.work.form.format, self.keep)
        if self.card.frames == 1:
            made = look(image.data, "image")
            place["size"] = f"{made.width}x{made.height}"
        return {**place, "seed": self.work.seeds[image.index] if image.seed is None else image.seed}
