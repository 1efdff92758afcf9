"""One training from start to end: its data, the stages it stands on, the budget, saves and signals.

The steps themselves are the loop's.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from limner import checkpoint, config, families
from limner.config import Budget, Run, parse_budget
from limner.core import ImageSpec, LimnerError, Stage, mix
from limner.data import open_data
from limner.device import pick_device
from limner.distributed import MEET, Ranks, all_threads, join, useful_processes
from limner.inference.pipeline import sample_grid
from limner.training.journal import Journal
from limner.training.loop import Loop

SKIPS_BEFORE_ROLLBACK = 3  # bad steps in a row
ROLLBACKS = 3  # before giving up


@dataclass(frozen=True)
class Result:
    """How a training ended."""

    out: Path
    seen: int
    seconds: float
    images_per_second: float
    stopped: int = 0  # the signal that ended it early, or 0
    terms: dict[str, float] = field(default_factory=dict)  # the last held-out losses


class Signals:
    """Ctrl-C and SIGTERM: finish the step, save, leave; a second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.caught = 0

    def _catch(self, number: int, _frame: Any) -> None:
        if self.caught and number == signal.SIGINT:
            os.write(2, b"\x1b[?25h\nLeft at once; the last checkpoint stands.\n")
            os._exit(130)
        self.caught = number

    @contextmanager
    def watch(self) -> Iterator[Signals]:
        try:
            before = {s: signal.signal(s, self._catch) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: nothing to catch here
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(run: Run, out: str | Path, *, resume: bool = False, quiet: bool = False) -> Result:
    """Train ``run`` into the folder ``out`` until its budget is spent or a signal asks to stop.

    Raises LimnerError for what the person can mend: an occupied folder, changed data, a bad budget.
    """
    out = Path(out)
    t = run.training
    device = pick_device(t.device)
    processes = useful_processes(t.processes, device, t.batch, t.accumulate)
    told = json.dumps(run.to_json()), str(out), str(int(resume))
    helper = [
        sys.executable,
        "-c",
        "import sys; from limner.training.run import help_train; help_train(*sys.argv[1:])",
        *told,
    ]
    if int(os.environ.get("RANK", "0")) or MEET in os.environ:
        with join(device, 1, ()) as ranks, torch.random.fork_rng():
            return _train_all(run, out, resume, device, ranks, quiet=True)
    if not resume and checkpoint.exists(out):
        raise LimnerError(f"{out} already holds a run: add --resume to go on with it, or name another.")
    if not checkpoint.exists(out) and not (resume and (out / "config.json").exists()):
        _refuse_occupied(out, run.sources)
    is_new = not out.exists()
    try:
        with checkpoint.lock(out), join(device, processes, helper) as ranks, torch.random.fork_rng():
            return _train_all(run, out, resume, device, ranks, quiet)
    finally:
        if is_new and not any(
            out.rglob(checkpoint.MODEL)
        ):  # it never began: leave nothing half-written behind
            shutil.rmtree(out, ignore_errors=True)


def _refuse_occupied(out: Path, sources: Sequence[str]) -> None:
    """A new run must not mix its files with a person's own; what training has locked before is a run's folder."""
    if not out.is_dir():
        return
    if any(Path(source).is_dir() and out.samefile(source) for source in sources):
        raise LimnerError(f"{out} is the folder of images itself: name another --out for the run.")
    own = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
    if own and not (out / checkpoint.LOCK).exists():
        raise LimnerError(f"{out} is no run and holds other files, such as {min(own)}: name another --out.")


def help_train(run: str, out: str, resume: str) -> None:
    """The part of one helper process that ``join`` starts."""
    train(Run.from_json(json.loads(run)), out, resume=resume == "1", quiet=True)


class Every:
    """Falls due each so many seconds or images; with ``patience``, not before it cost so small a share."""

    def __init__(self, text: str, epoch: int, loop: Loop, patience: float = 0.0):
        self.period: Budget = parse_budget(text, epoch)
        self.loop, self.patience, self.cost = loop, patience, 0.0
        self.last_seconds, self.last_seen = loop.seconds, loop.seen

    @property
    def due(self) -> bool:
        seconds, seen = self.loop.seconds - self.last_seconds, self.loop.seen - self.last_seen
        return self.period.share(seconds, seen) >= 1.0 and seconds >= self.patience * self.cost

    @contextmanager
    def happen(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.cost = time.perf_counter() - start
        self.last_seconds, self.last_seen = self.loop.seconds, self.loop.seen


def _train_all(run: Run, out: Path, resume: bool, device: torch.device, ranks: Ranks, quiet: bool) -> Result:
    """The stages that no run is named for, and then the run itself."""
    before = 0.0
    if not (resume and checkpoint.exists(out)):
        for name, stage in families.load(run.family).trains_first.items():
            if not getattr(run.model, name):
                result = _train_stage(run, name, stage, out, resume, device, ranks, quiet)
                if result.stopped:
                    return replace(result, out=out)
                before += result.seconds
    with Journal(out if ranks.first else None, quiet, run.training.tensorboard) as journal:
        return _train(run, out, resume, device, ranks, journal, before)


STAGE_SHARE = (
    0.25  # of a budget of time for each stage that is trained first; of images, a quarter as many besides
)
HOW = (  # what a stage takes from the settings of the run that it is for; all else is its preset's
    "channels_last", "compile", "device", "processes", "save_every", "sample_every", "samples",
    "evaluate_every", "log_every", "keep", "tensorboard", "data_changed",
)  # fmt: skip


def _train_stage(
    run: Run,
    name: str,
    stage: Stage,
    out: Path,
    resume: bool,
    device: torch.device,
    ranks: Ranks,
    quiet: bool,
) -> Result:
    """Train what ``run`` stands on into OUT/NAME, or go on there; nothing to do where that has been done."""
    folder = out / name
    begun = checkpoint.exists(folder)
    if begun and not resume:
        raise LimnerError(
            f"{folder} already holds a run: add --resume to go on with it, or name another --out."
        )
    with ranks.in_turn():
        data = open_data(run.sources, size=run.size, options=run.data, progress=not quiet)
    epoch = len(data.split(run.data.holdout, run.data.per_class)[0])
    if begun:
        first = config.read_run(folder)
        told = checkpoint.read_model(folder)[0]
        if parse_budget(first.budget, epoch).share(told["seconds"], told["seen"]) >= 1:
            return Result(folder, told["seen"], told["seconds"], 0.0)
    else:
        with torch.device("meta"):  # what the family refuses shows before the stage has taken its time
            families.build(run.family, run.model, data.spec)
        amount, unit = parse_budget(run.budget, epoch)
        part = (
            f"{amount * STAGE_SHARE:.3f}s" if unit == "seconds" else f"{math.ceil(amount * STAGE_SHARE)}img"
        )
        own = config.find_preset(families.load(stage.family), run.preset).training
        own = replace(own, **{field: getattr(run.training, field) for field in HOW})
        settings = getattr(run.model, stage.config)
        first = replace(run, family=stage.family, model=settings, training=own, budget=part)
    if not ranks.first:
        return _train(first, folder, begun, device, ranks, Journal(None, quiet=True))
    config.write_run(out, run)  # so that --resume knows what to go on with
    try:
        with checkpoint.lock(folder), Journal(folder, quiet, run.training.tensorboard) as journal:
            journal.say(
                f"[bold]{run.family}[/] stands on a run of {stage.family}, and --model.{name} names none: "
                f"training one first into {folder}, {first.budget} of {run.budget}"
            )
            return _train(first, folder, begun, device, ranks, journal)
    finally:
        if not checkpoint.exists(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _train(
    run: Run,
    out: Path,
    resume: bool,
    device: torch.device,
    ranks: Ranks,
    journal: Journal,
    before: float = 0.0,
) -> Result:
    """``before`` are the seconds that went into stages: they count in a budget of time."""
    t = run.training
    with ranks.in_turn():
        data = open_data(run.sources, size=run.size, options=run.data, progress=not journal.quiet)
    training, heldout = data.split(run.data.holdout, run.data.per_class)
    budget = parse_budget(run.budget, len(training))
    if len(training) < t.batch:
        journal.warn(
            f"{len(training)} images are fewer than a batch of {t.batch}: each comes more than once."
        )

    resumed = checkpoint.resume(out) if resume else None
    if resumed:
        before = resumed.header["seconds"] - resumed.state["seconds"]
        saved = Run.from_json(resumed.header["run"]).model
        for stage in families.load(run.family).trains_first.values():  # what was adopted stays as it is
            run = replace(run, model=replace(run.model, **{stage.config: getattr(saved, stage.config)}))
    if budget.unit == "seconds":
        budget = budget._replace(amount=max(budget.amount - before, 1e-9))
    run, others = (run, {}) if resumed else _settle(run, out, data.spec)
    parents = resumed.header["parents"] if resumed else {n: o.header["digest"] for n, o in others.items()}
    torch.manual_seed(mix(run.seed, "weights"))
    model = families.build(run.family, run.model, data.spec)
    if others:
        model.adopt({name: other.model for name, other in others.items()})
    loop = Loop(run, model, training, device, ranks)
    if resumed:
        if resumed.state["data"] != data.fingerprint and not t.data_changed:
            raise LimnerError(
                f"The data is not what {out} was trained on: name the same source and options, "
                f"or add --training.data_changed to go on with the new."
            )
        loop.restore(resumed)
        journal.rewind(loop.seen)
    ranks.same_(loop.model.state_dict().values())

    def save() -> None:
        if ranks.first:
            about = checkpoint.make_header(run, data.spec, loop.seen, parents)
            about |= {"seconds": before + loop.seconds, "data": data.fingerprint}
            state = loop.counters() | {"data": data.fingerprint}
            checkpoint.save(out, loop.average.state_dict(), about, loop.tensors(), state, keep=t.keep)

    def look() -> None:
        if ranks.first:
            like = heldout if len(heldout) else training
            with all_threads(ranks):
                grid = sample_grid(loop.average, like, t.samples, t.precision)
            journal.picture(loop.seen, grid)

    def measure() -> dict[str, float]:
        losses = {}
        if ranks.first and len(heldout):
            with all_threads(ranks):
                losses = loop.held_out(heldout)
        journal.held_out(loop.seen, loop.seconds, losses)
        return losses

    if ranks.first:
        config.write_run(out, run)
    journal.announce(model, data, run, str(device), ranks.world, loop.trial())
    if not resumed:
        save()  # so that there is always a last good state, and a full disk is known of at once

    saving = Every(t.save_every, len(training), loop)
    looking = Every(t.sample_every, len(training), loop, patience=50)  # at most a fiftieth of the time
    measuring = Every(t.evaluate_every, len(training), loop, patience=50)
    began_seen, began = loop.seen, loop.seconds
    start = time.monotonic() - loop.seconds
    with Signals().watch() as signals:
        while True:
            loop.seconds, stop = ranks.agree(time.monotonic() - start, signals.caught)
            progress = budget.share(loop.seconds, loop.seen)
            journal.progress(progress)
            if stop or progress >= 1.0:
                break
            try:
                journal.step(loop.seen + t.batch, loop.step, loop.seconds, loop.take_step(progress))
            except FloatingPointError as bad:
                journal.skipped(loop.seen, str(bad))
                if loop.skipped >= SKIPS_BEFORE_ROLLBACK:
                    _roll_back(loop, out, journal)
            if saving.due:
                with saving.happen():
                    save()
            if looking.due:
                with looking.happen():
                    look()
            if measuring.due:
                with measuring.happen():
                    measure()
        save()
    losses = {}
    if not stop:
        look()
        losses = measure()
    rate = (loop.seen - began_seen) / max(loop.seconds - began, 1e-9)
    return Result(out, loop.seen, loop.seconds, rate, stop, losses)


def _settle(run: Run, out: Path, spec: ImageSpec) -> tuple[Run, dict[str, checkpoint.Loaded]]:
    """The runs that a new training starts from, and the run with the settings that it shares with them."""
    family = families.load(run.family)
    named = {name: getattr(run.model, name) for name in family.starts if getattr(run.model, name)}
    named |= {name: getattr(run.model, name) or out / name for name in family.trains_first}
    others = {name: checkpoint.load(path) for name, path in named.items()}
    model = run.model
    for name, stage in family.trains_first.items():
        other = others[name]
        if other.run.family != stage.family or other.spec.shape != spec.shape:
            raise LimnerError(
                f"{run.family} stands on a run of {stage.family} on images of {_size(spec)}, and {named[name]} is one "
                f"of {other.run.family} on {_size(other.spec)}: name another with --model.{name}, or none, to have "
                "one trained first."
            )
        model = replace(model, **{stage.config: other.run.model})
    settled = family.settle(model, {name: other.model for name, other in others.items()})
    return replace(run, model=settled), others


def _size(spec: ImageSpec) -> str:
    return "x".join(map(str, spec.shape))


def _roll_back(loop: Loop, out: Path, journal: Journal) -> None:
    """Back to the last good state with other draws; after a few times, give up and say so."""
    times = loop.rollbacks + 1
    good = checkpoint.resume(out)
    if times > ROLLBACKS or good is None:
        raise LimnerError(
            f"The loss stayed infinite or not a number after {loop.rollbacks} returns to the last good state "
            f"in {out}: lower the learning rate (--training.optimisers.*.lr) or set --training.clip 1."
        )
    loop.restore(good)
    loop.rollbacks = times
    journal.rewind(loop.seen)
    journal.warn(
        f"Back to the state at {loop.seen:,} images, with other draws (return {times} of {ROLLBACKS})."
    )
