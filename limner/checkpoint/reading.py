"""Runs as they are read: the newest sound model or checkpoint, each file from one opening."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from limner import config, families, files
from limner.checkpoint.layout import LIVE, STATE, checkpoints, exists
from limner.checkpoint.model_file import MODEL, Header, ModelFile, migrate_weight, read_model_file
from limner.checkpoint.saving import state_digest
from limner.checkpoint.tensors import read_tensors
from limner.checkpoint.weights import check_weights, not_finite, some
from limner.config import Run
from limner.core import ImageSpec, Model, merge
from limner.fields import from_json
from limner.files import Damaged
from limner.settings import LimnerError, nearest

TRIES = 20  # to read a folder whose files another process replaces
T = TypeVar("T")


class Loaded(NamedTuple):
    model: Model
    header: Header
    run: Run
    spec: ImageSpec
    path: Path  # the file


class Resumed(NamedTuple):
    header: Header
    model_tensors: dict[str, Tensor]
    live_tensors: dict[str, Tensor]
    state: dict[str, Any]


def read_model(path: str | Path) -> tuple[Header, dict[str, Tensor]]:
    """The header and the weights of a model file or of a run's folder, verified.

    If a folder's ``model.safetensors`` is damaged, not finite or missing, its newest sound checkpoint is read, with a
    warning. ``digest`` in the header is the hash of the file's content. Raises LimnerError.
    """
    found = _open(Path(path), mapped=False)[1]
    return found.header, found.tensors


def load(path: str | Path, device: str | torch.device = "cpu") -> Loaded:
    """The model of a file or of a run's folder, with averaged weights, in eval mode. Raises LimnerError."""
    file, (header, tensors, *_) = _open(Path(path))
    try:
        run = Run.from_json(header["run"])
        spec = from_json(ImageSpec, header["spec"], "spec")
    except (KeyError, LimnerError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise LimnerError(f"This version of Limner cannot use the header of {file}: {reason}") from error
    with torch.device("meta"):  # uses no memory, whatever sizes the header claims
        check_weights(merge(families.build(run.family, run.model, spec)), tensors, str(file))
    with torch.random.fork_rng(devices=[]):  # loading must not change the global random state
        model = merge(families.build(run.family, run.model, spec))
    model.load_state_dict(tensors)
    return Loaded(model.to(device).eval(), header, run, spec, file)


def family_of(path: str | Path) -> str:
    """The family of a file or of a run's folder. Raises LimnerError."""
    file, found = _open(Path(path))
    if isinstance(found.header.get("family"), str):
        return str(found.header["family"])
    raise LimnerError(f"This version of Limner cannot use the header of {file}: it has no 'family'")


def run_of(folder: str | Path) -> Run:
    """The run in a folder, by its config.json; by its newest sound checkpoint, with a warning, if that is damaged.

    Raises LimnerError if neither can be read.
    """
    try:
        return config.read_run(folder)
    except LimnerError as error:
        if not exists(folder):
            if isinstance(error, Damaged):
                advice = "There is no checkpoint to read the settings from: remove the file to begin the run again."
                raise Damaged(f"{error} {advice}") from None
            raise
        file, found = _open(Path(folder))
        warnings.warn(f"{error} Using the settings in {file} instead.", stacklevel=2)
        return Run.from_json(found.header.get("run"))


def resume(run_dir: str | Path) -> Resumed | None:
    """The newest sound checkpoint, with a warning for each newer damaged one; None if there are no checkpoints.

    Raises LimnerError if none is sound.
    """
    return _steadily(lambda: _newest_sound(Path(run_dir)))


def _newest_sound(run: Path) -> Resumed | None:
    folders = checkpoints(run)
    for i, folder in enumerate(folders, 1):
        try:
            return _read_checkpoint(folder)
        except Damaged as error:
            if i == len(folders):
                raise LimnerError(
                    f"No checkpoint of {run} is intact: {error} Restore a copy, or train again with another --out."
                ) from error
            warnings.warn(f"{error} Using {folders[i]} instead.", stacklevel=4)
    return None


def _steadily(read: Callable[[], T]) -> T:
    """What ``read`` gives, again where a file that it listed was replaced or removed by a save meanwhile."""
    for _ in range(TRIES - 1):
        try:
            return read()
        except FileNotFoundError:
            continue
    return read()


def _open(path: Path, mapped: bool = True) -> tuple[Path, ModelFile]:
    if path.is_file():
        return path, read_model_file(path, mapped)
    return _steadily(lambda: _open_folder(path, mapped))


def _open_folder(path: Path, mapped: bool) -> tuple[Path, ModelFile]:
    found = [f / MODEL for f in (path, *checkpoints(path)) if (f / MODEL).is_file()]
    if not found:
        raise LimnerError(f"There is no run and no model at {path}.{_nearby(path)}")
    if found[0].parent != path:
        warnings.warn(f"{path} has no {MODEL}: reading {found[0]}.", stacklevel=5)
    for file, older in itertools.pairwise(found):
        try:
            return file, _read_finite(file, mapped)
        except Damaged as error:
            warnings.warn(f"{error} Reading {older} instead.", stacklevel=5)
    return found[-1], _read_finite(found[-1], mapped)


def _read_finite(file: Path, mapped: bool) -> ModelFile:
    found = read_model_file(file, mapped)
    _refuse_not_finite(found.tensors, file)
    return found


def _refuse_not_finite(tensors: dict[str, Tensor], file: Path) -> None:
    if bad := not_finite(tensors):
        raise Damaged(f"{file} holds infinite values or NaN in {some(bad)}.")


def _nearby(path: Path) -> str:
    """A hint at runs with similar names."""
    folders = {path.parent, Path("runs")}
    entries = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    runs = sorted(str(entry) for entry in entries if exists(entry))
    return nearest(str(path), runs) or (f" There are {some(runs)}." if runs else "")


def _read_checkpoint(folder: Path) -> Resumed:
    """A checkpoint, verified. Raises Damaged; FileNotFoundError if a save removed it meanwhile."""
    try:
        return _read_parts(folder)
    except FileNotFoundError as error:
        if not folder.exists():
            raise
        raise Damaged(f"{error.filename} is damaged or missing.") from None


def _read_parts(folder: Path) -> Resumed:
    content = files.read_json(folder / STATE)
    digest = content.pop("digest", None)
    if digest != state_digest(content):
        raise Damaged(f"{folder / STATE} is damaged: its content does not match its hash.")
    try:
        state, beside = dict(content["state"]), {name: content["files"][name] for name in (MODEL, LIVE)}
        written = {name: (entry["bytes"], entry["sha256"]) for name, entry in beside.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{folder / STATE} is damaged: it lacks {error}.") from None
    model, live = read_model_file(folder / MODEL), read_tensors(folder / LIVE)
    for name, part in ((MODEL, model), (LIVE, live)):
        if (len(part.whole), hashlib.sha256(part.whole).hexdigest()) != written[name]:
            raise Damaged(f"{folder / name} is damaged: its content does not match its hash.")
        _refuse_not_finite(part.tensors, folder / name)
    current = {_current_name(name, model): value for name, value in live.tensors.items()}
    return Resumed(model.header, model.tensors, current, state)


def _current_name(name: str, model: ModelFile) -> str:
    part, _, weight = name.partition("/")
    return (
        f"{part}/{migrate_weight(model.header['family'], weight, model.format)}" if part == "model" else name
    )
