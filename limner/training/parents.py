"""The runs that a run builds on: which are trained first, what is refused before, and what is taken from them.

A parent that no run is named for is trained into OUT/FIELD, and may itself have parents. Of a budget of time it gets
``Parent.share``, less where the shares at one level come to more than half; the rest is the run's own. A budget of
images is the run's own, and each parent has its share of that number besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limner import checkpoint, config, families
from limner.config import Budget, Run, parse_budget
from limner.core import ImageSpec, Model, Parent, Resizes
from limner.data.given import wanted_alone
from limner.distributed import Ranks, microbatch_size
from limner.files import refuse_other_files
from limner.networks.checks import SettingsError
from limner.settings import LimnerError, join_words
from limner.training.pictures import learn_pictures
from limner.training.players import check_objectives

PARENTS_SHARE = 0.5  # of a budget, at most: for all the parents of one run that are trained first
INHERITED = (  # training settings that a parent takes from the run it is trained for; the others are its preset's
    "channels_last", "compile", "device", "save_every", "sample_every", "samples",
    "evaluate_every", "log_every", "keep", "tensorboard", "data_changed",
)  # fmt: skip


def parents_of(run: Run) -> dict[str, Parent]:
    """The parents that the run has, by config field: those that it names and those that are trained first."""
    table = families.load(run.family).parents
    return {
        field: parent
        for field, parent in table.items()
        if parent.is_run(name := getattr(run.model, field)) or (parent.family and not name)
    }


def trained_first(run: Run) -> dict[str, Parent]:
    """The parents that no run is named for."""
    return {field: parent for field, parent in parents_of(run).items() if not getattr(run.model, field)}


def path_of(run: Run, out: Path, field: str) -> Path:
    """Where the parent is, or will be once it has been trained."""
    return Path(getattr(run.model, field) or out / field)


def shares(run: Run) -> dict[str, float]:
    """The share of the budget that each parent that is trained first gets."""
    wanted = {field: parent.share for field, parent in trained_first(run).items()}
    scale = PARENTS_SHARE / max(sum(wanted.values()), PARENTS_SHARE)
    return {field: share * scale for field, share in wanted.items()}


def own_budget(run: Run, epoch: int, before: float) -> Budget:
    """What the run itself may spend after its parents took ``before`` seconds: never less than its own share."""
    budget = parse_budget(run.budget, epoch)
    if budget.unit == "images":
        return budget
    least = budget.amount * (1 - sum(shares(run).values()))
    return budget._replace(amount=max(budget.amount - before, least))


def is_finished(run: Run, out: Path, epoch: int) -> bool:
    """Whether the run in ``out`` has spent its budget."""
    resumed = checkpoint.resume(out)
    if resumed is None:
        return False
    seconds = resumed.state["seconds"]
    budget = own_budget(run, epoch, resumed.header["seconds"] - seconds)
    return budget.spent(seconds, resumed.state["seen"]) >= 1


def first_run(run: Run, field: str, out: Path, spec: ImageSpec, epoch: int, resume: bool) -> Run:
    """The run that trains a parent that no run is named for: a new one, or on resume the one that was begun."""
    if resume and ((out / field / "config.json").exists() or checkpoint.exists(out / field)):
        return checkpoint.run_of(out / field)
    parent = parents_of(run)[field]
    amount, unit = parse_budget(run.budget, epoch)
    amount *= shares(run)[field]
    family = families.load(parent.family)
    training = config.find_preset(family, run.preset).training
    sources, data = (run.sources, run.data) if family.given_by else wanted_alone(run.sources, run.data)
    return replace(
        run,
        family=parent.family,
        size=parent.size(run.model, spec) if parent.size else run.size,
        budget=f"{max(amount, 0.001):.3f}s" if unit == "seconds" else f"{max(math.ceil(amount), 1)}img",
        model=getattr(run.model, parent.config),
        training=replace(training, **{name: getattr(run.training, name) for name in INHERITED}),
        sources=sources,
        data=data,
    )


def check(run: Run, out: Path, spec: ImageSpec, epoch: int, resume: bool, ranks: Ranks) -> Model:
    """The run's model on the meta device, built on all its parents, those that are trained first included.

    Raises LimnerError for whatever would be refused later, at any depth.
    """
    microbatch_size(run.training.batch, run.training.accumulate, ranks)
    models: dict[str, Model] = {}
    for field, parent in parents_of(run).items():
        path, named = path_of(run, out, field), getattr(run.model, field)
        height, width = parent.size(run.model, spec) if parent.size else (spec.height, spec.width)
        wanted = replace(spec, height=height, width=width, frames=1 if parent.stills else spec.frames)
        if named and builds_on(path, out):
            raise LimnerError(
                f"{out} cannot build on {path}, which is the same run or was built on it: name another run with "
                f"--model.{field}."
            )
        if named or (resume and checkpoint.exists(path)):
            models[field] = checkpoint.load(path, "meta").model
        else:
            first = first_run(run, field, out, spec, epoch, resume)
            refuse_occupied(first, path, resume)
            its_spec = wanted if first.data.gives else replace(wanted, given=None)
            models[field] = check(first, path, its_spec, epoch, resume, ranks)
        _refuse_unfit(run, field, path, models[field], wanted)
    run = settle(run, models)
    with torch.device("meta"):
        model = families.build(run.family, run.model, spec)
    check_objectives(model, run.training)
    adopt(model, models, run, out)
    model.learn_texts(())  # refuses here what it would refuse later
    learn_pictures(model, run)
    return model


def refuse_occupied(run: Run, out: Path, resume: bool) -> None:
    """A new run must not mix its files with a person's own. Raises LimnerError."""
    if checkpoint.exists(out):
        if not resume:
            raise LimnerError(
                f"{out} already holds a run: add --resume to continue it, or name another --out."
            )
    elif not (resume and (out / "config.json").exists()) and out.is_dir():
        if any(Path(source).is_dir() and out.samefile(source) for source in run.sources):
            raise LimnerError(f"{out} is the folder of images itself: name another --out for the run.")
        # A folder that training has locked before is a run's; one that is filled with images is locked too.
        if not (out / checkpoint.LOCK).exists() or (out / "metadata.jsonl").exists():
            refuse_other_files(out, "--out")


def builds_on(path: Path, out: Path, visited: tuple[Path, ...] = ()) -> bool:
    """Whether the run at ``path`` is the one in ``out`` or was built on it, as far as its parents still exist."""
    path = (path.parent if path.is_file() else path).resolve()
    if path == out.resolve():
        return True
    if path in visited:
        return False
    try:
        run = config.read_run(path)
    except LimnerError:
        return False
    return any(builds_on(path_of(run, path, field), out, (*visited, path)) for field in parents_of(run))


def _refuse_unfit(run: Run, field: str, path: Path, other: Model, spec: ImageSpec) -> None:
    """Raises LimnerError for a parent that cannot do what is needed, or was trained on images of another size."""
    parent = parents_of(run)[field]
    network = parent.find(other)
    needed = f"{run.family} needs a run with {parent.description}"
    flag = f"--model.{field}{', or leave it empty to have one trained first' if parent.family else ''}"
    if network is None:
        suited = _families_for(parent, spec)
        raise LimnerError(
            f"{needed}, and {path} is one of {other.family}, which has none: name a run of {suited} with {flag}."
        )
    if other.spec.shape != spec.shape and not isinstance(network, Resizes):
        own_size = f", or set {parent.size_flag} to its height and width" if parent.size_flag else ""
        there, here = ("x".join(map(str, s.shape)) for s in (other.spec, spec))
        raise LimnerError(
            f"{needed} on images of {here}, and {path} was trained on {there}: name another with {flag}{own_size}."
        )


def _families_for(parent: Parent, spec: ImageSpec) -> str:
    """The families that have what the parent must have, in words."""
    spec, suited = replace(spec, classes=("a", "b"), captions=True, frames=1), []
    for name in families.names():
        preset = next(iter(families.load(name).presets.values()))
        with suppress(LimnerError), torch.device("meta"):
            if parent.find(families.build(name, preset.model, spec)) is not None:
                suited.append(name)
    return join_words(suited) or "another family"


def settle(run: Run, models: Mapping[str, Model]) -> Run:
    """The run with the settings of the networks that it takes from ``models``, by config field."""
    parents = parents_of(run)
    settings = {parents[field].config: parents[field].find(model).config for field, model in models.items()}
    return replace(run, model=replace(run.model, **settings))


def adopt(model: Model, models: Mapping[str, Model], run: Run, out: Path) -> None:
    """Copy the weights of the run's parents into its model. Raises LimnerError for those that do not fit."""
    for field, other in models.items():
        parent = model.parents[field]
        network: Any = parent.find(other)
        own, path = model.get_submodule(parent.weights), path_of(run, out, field)
        if not isinstance(own, Resizes):
            checkpoint.load_weights(own, network.state_dict(), str(path))
            continue
        try:
            own.load_resized(network)
        except SettingsError as error:
            raise LimnerError(
                f"{run.family} cannot build on {path}: {error}; name another run with "
                f"--model.{field}, or choose --data.channels, --size and the settings that it was trained with."
            ) from None


def keep_parents(run: Run, saved: Run, out: Path) -> Run:
    """A run to be resumed, with the parents of the ``saved`` one. Raises LimnerError if it names another."""
    kept: dict[str, Any] = {}
    for field, parent in families.load(run.family).parents.items():
        path = path_of(saved, out, field) if field in parents_of(saved) else None
        named, before = getattr(run.model, field), path or getattr(saved.model, field)
        same = Path(named).resolve() == path.resolve() if path and parent.is_run(named) else named == before
        if named and not same:
            raise LimnerError(
                f"{out} was {f'built on {before}' if before else 'trained without one'}, so it cannot resume with "
                f"--model.{field} {named}: leave that out, or train a new run with another --out."
            )
        if before:
            kept |= {name: getattr(saved.model, name) for name in (field, parent.config)}
    return replace(run, model=replace(run.model, **kept))
