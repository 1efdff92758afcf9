"""A model file: weights, and a JSON header that says what they are; a hash covers both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limner import config, files
from limner.checkpoint.tensors import Bytes, Content, digest_of, plain, read_tensors, write_tensors
from limner.config import Run, migrate_run
from limner.core import ImageSpec
from limner.fields import to_json
from limner.files import Damaged, sync
from limner.settings import LimnerError, __version__

MODEL = "model.safetensors"
Header = dict[str, Any]


class ModelFile(NamedTuple):
    """A model file that was read: names and settings are of this version's format, the file's may be an earlier one."""

    header: Header
    tensors: dict[str, Tensor]
    format: int
    whole: Bytes  # the file


def make_header(run: Run, spec: ImageSpec, seen: int, parents: Mapping[str, str] | None = None) -> Header:
    """The header of a model file; ``parents`` are the digests of the runs that it was built on, by config field."""
    return {
        "format": config.FORMAT,
        "family": run.family,
        "run": run.to_json(),
        "spec": to_json(spec),
        "seen": seen,
        "versions": {"limner": __version__, "torch": torch.__version__},
        "parents": dict(parents or {}),
    }


def write_model(path: str | Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Write a model file completely or not at all. Raises LimnerError, as on a full disk."""
    with files.atomic(Path(path)) as unfinished:
        write_whole(unfinished, plain(tensors), header)
    with files.writing(Path(path)):
        sync(Path(path).parent)


def write_whole(path: Path, tensors: dict[str, Tensor], header: Header) -> None:
    """Write a model file in place; ``tensors`` as ``plain`` gives them."""
    # The digest covers the header as the text that is stored.
    text = json.dumps({**header, "format": config.FORMAT})
    write_tensors(path, tensors, {"limner": text, "digest": digest_of(text, tensors)})


def read_model_file(path: Path, mapped: bool = False) -> ModelFile:
    """A model file, verified. Raises Damaged, LimnerError for a file of another program, and OSError.

    ``mapped``: see ``read_tensors``.
    """
    content = read_tensors(path, mapped)
    metadata, tensors = content.metadata, content.tensors
    if "limner" not in metadata:
        raise LimnerError(
            f"{path} has weights but no Limner header with their family and settings: open a file that Limner wrote."
        )
    digest = digest_of(metadata["limner"], tensors)
    if metadata.get("digest") != digest:
        raise Damaged(f"{path} is damaged: its content does not match its hash.")
    return _in_this_format(path, content, digest)


def _in_this_format(path: Path, content: Content, digest: str) -> ModelFile:
    try:
        saved = files.parse_json(content.metadata["limner"], path)
        version = saved["format"]
        header, tensors = _migrate(saved, content.tensors, path)
    except (Damaged, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{path} is damaged: its header cannot be read ({error}).") from error
    return ModelFile({**header, "digest": digest}, tensors, version, content.whole)


def _migrate(header: Header, tensors: dict[str, Tensor], path: Path) -> tuple[Header, dict[str, Tensor]]:
    """The header and the weights, renamed as in this version."""
    version = header["format"]
    if version > config.FORMAT:
        raise LimnerError(
            f"{path} was written by a newer Limner (format {version}; this one reads up to {config.FORMAT}): "
            "upgrade Limner to open it."
        )
    if version == config.FORMAT:
        return header, tensors
    run = migrate_run(header["run"], header["spec"], version)
    tensors = {migrate_weight(header["family"], name, version): value for name, value in tensors.items()}
    return {**header, "run": run, "format": config.FORMAT}, tensors


def migrate_weight(family: str, name: str, version: int) -> str:
    """The current name of a weight of a family in a file of format ``version``."""
    for number in range(version, config.FORMAT):
        name = config.MIGRATIONS[number].weight(family, name)
    return name
