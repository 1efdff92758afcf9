"""What a family's settings of sampling are, as a person may set them over HTTP, and what a run can do."""

from __future__ import annotations

import dataclasses
import inspect
import io
import tokenize
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, cast

import torch

from limner.core import Classifies, Compares, Describes, FitsModel, Generates, Model, Translates
from limner.fields import bounds_of, check, from_json, nearest, to_json, type_of
from limner.inference.capabilities import has
from limner.inference.pipeline import Pipeline
from limner.serve.engine.sentences import as_fields
from limner.serve.messages import Card, Knob
from limner.settings import LimnerError

MOST = {"steps": 250, "repaints": 8}  # of what costs a network call each, whatever the family allows
Type = Literal["integer", "number", "string", "boolean", "list"]
_TYPES: dict[Any, Type] = {int: "integer", float: "number", str: "string", bool: "boolean"}


def knobs_of(model: Model) -> tuple[Knob, ...]:
    """The fields of the family's Sampling, with the defaults of this model; not those that name pictures."""
    kind: Any = model.Sampling
    defaults: Any = kind()
    if isinstance(defaults, FitsModel):
        defaults = defaults.fit(model)
    fields = [f for f in dataclasses.fields(kind) if f.init and not f.metadata.get("picture")]
    return tuple(_knob(kind, f, getattr(defaults, f.name)) for f in fields)


def _knob(cls: type, f: dataclasses.Field[Any], default: Any) -> Knob:
    kind, words = type_of(cls, f.name), as_fields(comments(cls).get(f.name, ""))
    choices: tuple[Any, ...] = ()
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        kind = type(choices[0])
    name: Type = _TYPES.get(kind, "list")
    knob = Knob(
        f.name, name, to_json(default), words, tuple(map(str, choices)), model=bool(f.metadata.get("run"))
    )
    if name not in ("integer", "number") or choices:
        return knob
    bounds = bounds_of(cls, f.name)
    most = min(bounds.most, MOST.get(f.name, bounds.most))
    ends = (None if abs(end) == float("inf") else end for end in (bounds.least, most))
    least, most_ = ends
    return dataclasses.replace(knob, least=least, most=most_, above=bounds.above, below=bounds.below)


def sampling_for(model: Model, settings: Mapping[str, Any], served: Mapping[str, Model]) -> Any:
    """The family's Sampling with these fields; one that names a run takes the id of a served model, never a path.

    Raises LimnerError.
    """
    kind: Any = model.Sampling
    for f in dataclasses.fields(kind):
        if f.metadata.get("picture") and settings.get(f.name):
            raise LimnerError(f"{f.name} names a picture, which this route does not take: leave it out.")
        named = settings.get(f.name) if f.metadata.get("run") else None
        if named and named not in served:
            hint = nearest(str(named), served) or f" There are {', '.join(served)}."
            raise LimnerError(f"{f.name} names no model of this server.{hint}")
    for name, most in MOST.items():
        if isinstance(value := settings.get(name), int) and value > most:
            raise LimnerError(f"{name} {value} is more than this server takes: choose {most} or less.")
    sampling = _checked(model, settings)
    runs = [f.name for f in dataclasses.fields(kind) if f.metadata.get("run") and getattr(sampling, f.name)]
    return dataclasses.replace(sampling, **{name: served[getattr(sampling, name)] for name in runs})


def _checked(model: Model, settings: Mapping[str, Any]) -> Any:
    """The family's Sampling. Raises LimnerError."""
    kind: Any = model.Sampling
    try:
        sampling: Any = from_json(kind, dict(settings), "settings")
        check(sampling, "--")
        return sampling.fit(model) if isinstance(sampling, FitsModel) else sampling
    except LimnerError as error:
        raise LimnerError(str(error).removeprefix("settings.")) from None


def card_of(name: str, pipeline: Pipeline, fingerprint: str = "") -> Card:
    """What a run is and can do, by what its model has methods for."""
    model, loaded = pipeline.model, pipeline.loaded
    spec, file = model.spec, loaded.path
    describes = isinstance(model, (Describes, Compares))
    can = {
        "draw": isinstance(model, Generates), "embed": describes, "classify": has(loaded, Classifies),
        "apply": isinstance(model, Translates),
    }  # fmt: skip
    return Card(
        name,
        model.family,
        spec.height,
        spec.width,
        spec.channels,
        tuple(what for what, able in can.items() if able),
        tuple(sorted(model.follows)),
        spec.classes,
        knobs_of(model) if can["draw"] or can["apply"] else (),
        int(file.stat().st_mtime),
        pipeline.digest,
        fingerprint,
        spec.frames,
        _features(model) if describes else 0,
        model.scale if isinstance(model, Translates) else 1,
    )


@torch.inference_mode()
def _features(model: Model) -> int:
    """Dimensions of an embedding."""
    network = model.embed_images if isinstance(model, Compares) else cast(Describes, model).features
    return int(network(torch.zeros(1, *model.spec.shape, device=model.device)).shape[1])


@cache
def comments(cls: type) -> dict[str, str]:
    """The comment of each field of a dataclass: that of its line, or else those on the lines above it."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            try:
                source = inspect.getsource(base)
            except (OSError, TypeError):  # made without a file
                continue
            names = set(inspect.get_annotations(base))
            found |= {name: words for name, words in _comments(source).items() if name in names}
    return found


def _comments(source: str) -> dict[str, str]:
    found: dict[str, str] = {}
    above: list[str] = []
    name, first = "", True  # the field of the logical line, and whether its first token is still to come
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            words = token.string.lstrip("# ").rstrip()
            if first:
                above.append(words)
            elif name and not token.line.lstrip().startswith("#"):
                found[name] = words
        elif token.type == tokenize.NL:
            if first and not token.line.strip():
                above = []
        elif token.type == tokenize.NEWLINE:
            if name and above and name not in found:
                found[name] = " ".join(above)
            name, first, above = "", True, []
        elif first and token.type not in (tokenize.INDENT, tokenize.DEDENT):
            name, first = (token.string if token.type == tokenize.NAME else ""), False
    return found
