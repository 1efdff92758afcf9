"""What a resumed run must share with its checkpoint, each refused in a sentence that names it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from limner.checkpoint import Resumed
from limner.config import Run
from limner.data import Data
from limner.fields import differing
from limner.settings import LimnerError

SPLIT = ("holdout", "per_class")  # fields of DataOptions that change the split, but not the packed data
ANSWER = "add --training.data_changed to continue all the same"


def check(run: Run, resumed: Resumed, out: Path, data: dict[str, str]) -> Run:
    """The run of a checkpoint that ``run`` is to continue. Raises LimnerError if it cannot.

    ``data`` is what a checkpoint of the run would say of its data.
    """
    saved, state = Run.from_json(resumed.header["run"]), resumed.state
    if saved.family != run.family:
        raise LimnerError(
            f"{out} is a run of {saved.family}, so it cannot resume as {run.family}: choose another --out."
        )
    if not run.training.data_changed:
        if state.get("data") != data["data"]:
            raise LimnerError(
                f"The data is not what {out} was trained on: name the same source and options, or {ANSWER}."
            )
        _refuse_other_split(run, saved, out, state.get("split") not in (None, data["split"]))
    for name, settings in run.training.optimisers.items():
        before = saved.training.optimisers.get(name, settings)
        if _kind(settings.name) != _kind(before.name):
            raise LimnerError(
                f"{out} was trained with --training.optimisers.{name}.name {before.name}, so it cannot resume with "
                f"{settings.name}, which has another state: leave that out, or train a new run with another --out."
            )
    return saved


def _refuse_other_split(run: Run, saved: Run, out: Path, differs: bool) -> None:
    """Images that were trained on must not become held-out ones."""
    for name in SPLIT:
        before, now = getattr(saved.data, name), getattr(run.data, name)
        if before != now:
            flag = f"--data.{name.replace('_', '-')}"
            raise LimnerError(
                f"{out} was trained with {flag} {before}, and {now} holds out other images, so images that it was "
                f"trained on would be measured on: leave {flag} out, or {ANSWER}."
            )
    if differs:
        raise LimnerError(
            f"The held-out images are not those of {out}, so images that it was trained on would be measured on: "
            f"name the same sources and options, or {ANSWER}."
        )


def of_threads(count: int, before: int) -> str:
    """What a training with a budget in images says of its threads; ``before``: of its checkpoint, or 0."""
    threads = f"{count} thread{'s' * (count > 1)}"
    if before > count:
        return f"Resumes with {threads} instead of {before}, so its end may differ in the last digits."
    return f"Uses {threads} to its end, whatever else runs: a budget in images ends the same after a resume."


def _kind(optimiser: str) -> str:
    """Adam and AdamW are one optimiser here (``make_optimiser``)."""
    return "adamw" if optimiser == "adam" else optimiser


def split_digest(training: Data, heldout: Data) -> str:
    """The hash of which rows are trained on and which are held out."""
    digest = hashlib.sha256()
    for part in (training, heldout):
        digest.update(np.asarray([len(part), *part.rows], "<i8").tobytes())
    return digest.hexdigest()


@contextmanager
def naming_changes(run: Run, resumed: Resumed, out: Path) -> Iterator[None]:
    """A state that does not fit the model is an error that names the settings of the model that have changed."""
    try:
        yield
    except LimnerError as error:
        before = Run.from_json(resumed.header["run"]).model
        changes = [
            f"{flag} {now} instead of {old}" for flag, old, now in differing(before, run.model, "--model")
        ]
        if not changes:
            raise
        raise LimnerError(
            f"{out} cannot resume with {', '.join(changes)}: its weights or optimisers have other shapes; leave that "
            "out, or train a new run with another --out."
        ) from error
