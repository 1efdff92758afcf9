"""What all requests share: whose model, which pictures, which settings, in which form the answer is written."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from limner.fields import join_words, nearest
from limner.serve.http.asked import Caller, Engine
from limner.serve.http.bodies import Form as FormBody
from limner.serve.http.bodies import Limits
from limner.serve.http.errors import ApiError
from limner.serve.http.pictures import Picture, look
from limner.serve.http.tables import CAPS, IDLE, MODEL, QUALITIES, REFUSED, Table, fields_of
from limner.serve.http.values import LARGEST, bad, read_fields, unsupported
from limner.serve.messages import Card, Format, Knob

SHOWN = 12  # names in a message


class Keeps(Protocol):
    """Keeps a written image for a while; the path on this server at which it can be read until then."""

    def __call__(self, data: bytes, format: Format) -> str: ...


def _keep_nothing(data: bytes, format: Format) -> str:
    raise bad("This server gives no paths to images: choose b64_json.", "response_format")


@dataclass(frozen=True)
class Defaults:
    """What the server decides, rather than a request."""

    keep: Keeps = _keep_nothing
    resize: bool = False  # bring images to the size that is asked for
    metadata: bool = False  # write into each PNG how it was drawn
    seconds: float = 0.0  # until the work of a request is cancelled, but not that of a job; 0: never
    limits: Limits = field(default_factory=Limits)


@dataclass
class Reading:
    """A request whose fields were read."""

    table: Table
    engine: Engine
    caller: Caller
    defaults: Defaults
    card: Card
    values: dict[str, Any]
    pictures: tuple[Picture, ...] = ()
    mask: Picture | None = None
    job: bool = False
    ignored: list[str] = field(default_factory=list)

    @property
    def identifier(self) -> str:
        """By whom the request says that it is."""
        return self.values.get("safety_identifier") or self.values.get("user") or ""

    @property
    def seconds(self) -> float:
        return 0.0 if self.job else self.defaults.seconds

    def ignore(self, name: str) -> None:
        if name not in self.ignored:
            self.ignored.append(name)

    def headers(self) -> dict[str, str]:
        """Those of the answer: what had no effect."""
        values = self.values
        for name in ("user", "safety_identifier"):
            other = name == "user" and values.get("safety_identifier")
            if values.get(name) and (self.caller.name or other):
                self.ignore(name)
        return {"x-limner-ignored": ", ".join(self.ignored)} if self.ignored else {}

    def settings(self) -> dict[str, Any]:
        """The fields of the family's sampling that are given."""
        knobs = {knob.name: knob for knob in self.card.knobs}
        own = {field.name for field in self.table.fields if field.name not in IDLE}
        given = {name: value for name, value in self.values.items() if name in knobs and name not in own}
        for name, value in given.items():
            if knobs[name].model and value and value not in self.engine.cards:
                hint = nearest(value[:64], self.engine.cards)
                raise bad(f"{name} names no served model: give the id of one, or leave it out.{hint}", name)
        return given

    def knob(self, name: str) -> Knob | None:
        return next((knob for knob in self.card.knobs if knob.name == name), None)

    def seed(self) -> int:
        """Of the first image: the one given, or any that leaves room for the others."""
        given: int | None = self.values.get("seed")
        return secrets.randbelow(LARGEST - 100) if given is None else given

    def scale_steps(self, settings: Mapping[str, Any]) -> tuple[float, str]:
        """How many times the steps are taken, and the quality's name in the answer."""
        given = self.values.get("quality", "auto")
        scale, name = QUALITIES[given]
        knob = self.knob("steps")
        if knob is None:
            if given not in ("auto", "medium", "standard"):
                self.ignore("quality")
            return 1.0, name
        steps = settings.get("steps", knob.default)
        if isinstance(steps, int) and steps * scale > max(CAPS["steps"], steps):
            raise bad(
                f"{name} quality is {steps * scale:.0f} steps, and {CAPS['steps']} are the most: lower one of them.",
                "quality",
            )
        return scale, name


def read(
    table: Table, body: Mapping[str, Any] | None, form: FormBody | None, engine: Engine, caller: Caller,
    defaults: Defaults, job: bool = False,
) -> Reading:  # fmt: skip
    """The fields and pictures of a request, checked. Raises ApiError."""
    if (form is None) == (table.pictures is not None):
        form_or_json = "JSON" if table.pictures is None else "multipart/form-data"
        raise ApiError(415, f"This request takes {form_or_json}.", "unsupported_media_type")
    values = dict(form.values() if form is not None else body or {})
    if job:
        values.pop("type", None)
    card = _card(values.get("model"), table, engine)
    pictures, mask = _pictures(table, form, values, defaults.limits) if form is not None else ((), None)
    if table.inputs:
        inputs = values.pop("input", None)
        values = read_fields(values, fields_of(table, card), False, REFUSED) | {"input": inputs}
    else:
        values = read_fields(values, fields_of(table, card), form is not None, REFUSED)
    if job:
        values.pop("stream", None)  # checked, and of no effect
    return Reading(table, engine, caller, defaults, card, values, pictures, mask, job)


def listed(names: Mapping[str, Any] | tuple[str, ...]) -> str:
    """' There are a, b and c.', of many the first."""
    first = list(names)[:SHOWN]
    more = [f"{len(names) - len(first)} more"] if len(names) > len(first) else []
    return f" There are {join_words([*first, *more], 'and')}." if len(names) > 1 else f" There is {first[0]}."


def _card(given: Any, table: Table, engine: Engine) -> Card:
    """The card of the model that is named, or of the only one that can answer."""
    name = MODEL.read(given)
    cards = engine.cards
    if not cards:
        raise ApiError(
            503, "The models are being loaded: try again.", "engine_starting", headers={"Retry-After": "1"}
        )
    able = {card.id: card for card in cards.values() if table.can in card.can}
    if name and name not in cards:
        hint = nearest(name[:64], cards) or listed(tuple(cards))
        raise ApiError(404, f"There is no model of that name here.{hint}", "model_not_found", "model")
    if not able:
        raise bad(f"No model here can {table.can}: ask a server that has one.", "model")
    if name:
        if name not in able:
            raise bad(f"{name} cannot {table.can}: choose another model.{listed(able)}", "model")
        return able[name]
    if len(able) > 1:
        raise bad(f"model is missing: name one.{listed(able)}", "model", "missing_required_parameter")
    return next(iter(able.values()))


def _pictures(
    table: Table, form: FormBody, values: dict[str, Any], limits: Limits
) -> tuple[tuple[Picture, ...], Picture | None]:
    wanted = table.pictures or {}
    for name in form.files:
        if name in REFUSED:
            raise unsupported(f"{name} is not supported: {REFUSED[name]}.", name)
        if name not in wanted:
            names = join_words(list(wanted))
            raise unsupported(f"A file of this form must be named {names}: rename it.", name)
    found = {}
    for name, (least, most) in wanted.items():
        if name in values and name not in form.files:
            raise unsupported(
                f"{name} must be a file of the form: nothing is fetched here, and no text is read.", name
            )
        files = form.files.get(name, [])
        if len(files) < least:
            raise bad(f"{name} is missing: send a picture as a file.", name, "missing_required_parameter")
        if len(files) > min(most, limits.files):
            many = "one" if most == 1 else f"at most {min(most, limits.files)}"
            raise bad(f"There are too many pictures: send {many} as {name}.", name)
        found[name] = tuple(look(data, name) for data in files)
    mask = found.get("mask", ())
    return found.get("image", ()), mask[0] if mask else None
