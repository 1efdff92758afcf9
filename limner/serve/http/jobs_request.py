"""What a job asks for, as it is kept until the job is removed."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

from limner.serve.http.asked import Asked, Route
from limner.serve.http.bodies import Form
from limner.serve.http.reading import Defaults
from limner.serve.http.tables import TABLES
from limner.serve.http.values import bad

LENGTH = struct.Struct("!I")
ROUTES: tuple[Route, ...] = get_args(Route)
GIVEN = "resize", "metadata"


@dataclass(frozen=True)
class JobRequest:
    """A route, and its JSON or its form; the other is None."""

    route: Route
    body: dict[str, Any] | None
    form: Form | None
    # Of Defaults, as the server that accepted it had them.
    given: dict[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        form, data = None, b""
        if self.form is not None:
            lengths = {name: list(map(len, found)) for name, found in self.form.files.items()}
            form = {"fields": self.form.fields, "files": lengths, "lists": sorted(self.form.lists)}
            data = b"".join(file for found in self.form.files.values() for file in found)
        said = {"route": self.route, "body": self.body, "form": form, "given": self.given}
        text = json.dumps(said).encode()
        return LENGTH.pack(len(text)) + text + data

    @classmethod
    def unpack(cls, packed: bytes) -> JobRequest:
        (length,) = LENGTH.unpack_from(packed)
        start = LENGTH.size + length
        said, form = json.loads(packed[LENGTH.size : start]), None
        if said["form"] is not None:
            form = Form(said["form"]["fields"], {}, set(said["form"]["lists"]))
            for name, lengths in said["form"]["files"].items():
                for size in lengths:
                    form.files.setdefault(name, []).append(packed[start : start + size])
                    start += size
        return cls(said["route"], said["body"], form, said.get("given", {}))  # earlier versions kept none

    def defaults(self, server: Defaults) -> Defaults:
        """Those that it is read by, at a server that may have other options than the one that accepted it."""
        return replace(server, **self.given)

    def settled(self, asked: Asked, server: Defaults) -> JobRequest:
        """With the model and the seed that were chosen, so that it is drawn by the same ones after a restart."""
        given = {name: getattr(server, name) for name in GIVEN}
        chosen: dict[str, Any] = {"model": asked.card.id}
        takes_seed = any(field.name == "seed" for field in TABLES[self.route].fields)
        if takes_seed and asked.work.between is None and asked.work.seeds:
            chosen["seed"] = asked.work.seeds[0]
        if self.form is None:
            return JobRequest(self.route, {**(self.body or {}), **chosen}, None, given)
        fields = {**self.form.fields, **{name: [str(value)] for name, value in chosen.items()}}
        return JobRequest(self.route, None, Form(fields, self.form.files, self.form.lists), given)


def route_of(said: Mapping[str, Any]) -> Route:
    """The route that a job's ``type`` names. Raises ApiError 400."""
    if "type" not in said:
        raise bad(f"type is missing: give one of {', '.join(ROUTES)}.", "type", "missing_required_parameter")
    if said["type"] not in ROUTES:
        raise bad(f"type must be one of {', '.join(ROUTES)}.", "type")
    return cast(Route, said["type"])
