"""One training from start to end: its data, the parents it builds on, the budget, checkpoints and signals."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from limner import checkpoint, config, families, files
from limner.config import Run, parse_budget
from limner.core import Model, mix
from limner.data import Data, open_data
from limner.device import pick_device
from limner.distributed import MEET, Ranks, all_threads, join, useful_processes
from limner.inference.pipeline import sample_grid
from limner.settings import LimnerError
from limner.training import parents
from limner.training.follows import follows
from limner.training.journal import Journal
from limner.training.loop import Loop
from limner.training.signals import Signals

SKIPS_BEFORE_ROLLBACK = 3  # steps in a row that were not finite
ROLLBACKS = 3  # before the training fails
LAUNCHER = ".launcher"  # file in a run's folder: the torchrun that began it


@dataclass(frozen=True)
class Result:
    """How a training ended."""

    out: Path
    seen: int
    seconds: float
    images_per_second: float
    stopped: int = 0  # the signal that ended it early, or 0
    terms: dict[str, float] = field(default_factory=dict)  # the last held-out losses


@dataclass(frozen=True)
class Context:
    """Where a training and those of its parents run."""

    device: torch.device
    ranks: Ranks
    quiet: bool


def train(run: Run, out: str | Path, *, resume: bool = False, quiet: bool = False) -> Result:
    """Train ``run`` into the folder ``out`` until its budget is spent or a signal asks to stop.

    Raises LimnerError for what the user can correct: an occupied folder, changed data, an invalid budget or parent.
    """
    out, t = Path(out), run.training
    if run.data.gives and "given" not in families.load(run.family).reads:
        raise LimnerError(
            f"{run.family} does not train on given pictures: leave out --data.pairs, --data.side-by-side and "
            "--data.domain, or choose a family that reads them (see `limner families`)."
        )
    for length in (run.budget, t.save_every, t.sample_every, t.evaluate_every):
        parse_budget(length, epoch=1)  # refused now rather than after the parents are trained
    device = pick_device(t.device)
    if int(os.environ.get("RANK", "0")) or MEET in os.environ:  # not the first process of this training
        with join(device, 1, ()) as ranks, torch.random.fork_rng():
            return _train_all(run, out, ranks.as_first(resume), Context(device, ranks, quiet=True))
    resume = resume or _restarted(out)
    parents.refuse_occupied(run, out, resume)
    processes = useful_processes(t.processes, device, t.batch, t.accumulate)
    code = "import sys; from limner.training.run import train_helper; train_helper(*sys.argv[1:])"
    helper = [sys.executable, "-c", code, json.dumps(run.to_json()), str(out), str(int(resume))]
    with _hold(out), join(device, processes, helper) as ranks, torch.random.fork_rng():
        if launcher := _launcher():
            files.write_text(out / LAUNCHER, launcher)
        return _train_all(run, out, ranks.as_first(resume), Context(device, ranks, quiet))


def train_helper(run: str, out: str, resume: str) -> None:
    """What a process runs that ``join`` starts."""
    try:
        train(Run.from_json(json.loads(run)), out, resume=resume == "1", quiet=True)
    except LimnerError as mistake:
        sys.exit(str(mistake))


def _launcher() -> str:
    """What names the torchrun that started this process, through all its restarts; empty if none did."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return job and f"{job}, process {os.getppid()} on {socket.gethostname()}"


def _restarted(out: Path) -> bool:
    """Whether torchrun starts a training again that it began in ``out``, rather than in somebody's earlier run."""
    begun = out / LAUNCHER
    return bool(_launcher()) and begun.is_file() and begun.read_text("utf-8", "replace") == _launcher()


@contextlib.contextmanager
def _hold(out: Path) -> Iterator[None]:
    """Lock a run's folder; a new one is removed if the training ends before its first checkpoint."""
    is_new = not out.exists()
    try:
        with checkpoint.lock(out):
            yield
    finally:
        if is_new and not any(out.rglob(checkpoint.MODEL)):
            shutil.rmtree(out, ignore_errors=True)


def _train_all(run: Run, out: Path, resume: bool, context: Context) -> Result:
    """Train the parents that no run is named for, each with its own parents, and then the run itself."""
    resume_run = resume and checkpoint.exists(out)
    with context.ranks.in_turn():
        data = open_data(run.sources, size=run.size, options=run.data, progress=not context.quiet)
    if not resume_run:
        epoch = len(data.split(run.data.holdout, run.data.per_class)[0])
        parents.check(run, out, data.spec, epoch, resume, context.ranks)
        for name in parents.trained_first(run):
            first, folder = parents.first_run(run, name, out, data.spec, epoch, resume), out / name
            if resume and parents.is_finished(first, folder, epoch):
                continue
            if context.ranks.first:
                config.write_run(out, run)  # for --resume
            Journal(None, context.quiet).console.print(
                f"[bold]{run.family}[/] builds on a run of {first.family}, and --model.{name} names none: "
                f"training one first into {folder}, {first.budget} of {run.budget}"
            )
            with _hold(folder) if context.ranks.first else contextlib.nullcontext():
                result = _train_all(first, folder, resume, context)
            if result.stopped:
                return replace(result, out=out)
    with Journal(out if context.ranks.first else None, context.quiet, run.training.tensorboard) as journal:
        return Session(run, out, data, resume_run, context, journal).train()


class Periodic:
    """Runs ``action`` every so many seconds or images; ``rest`` is the least pause, in units of its own duration."""

    def __init__(self, every: str, epoch: int, loop: Loop, action: Callable[[], object], rest: float = 0.0):
        self.budget = parse_budget(every, epoch)
        self.loop, self.action, self.rest, self.duration = loop, action, rest, 0.0
        self.last_seconds, self.last_seen = loop.seconds, loop.seen

    def run_if_due(self) -> None:
        seconds, seen = self.loop.seconds - self.last_seconds, self.loop.seen - self.last_seen
        if self.budget.spent(seconds, seen) < 1 or seconds < self.rest * self.duration:
            return
        start = time.perf_counter()
        self.action()
        self.duration = time.perf_counter() - start
        self.last_seconds, self.last_seen = self.loop.seconds, self.loop.seen


class Session:
    """The training of one run, begun or resumed."""

    run: Run  # with the settings that it has from its parents
    loop: Loop
    digests: dict[str, str]  # of the parents, by config field
    seconds_before: float  # that parents took from a budget of time

    def __init__(self, run: Run, out: Path, data: Data, resume: bool, context: Context, journal: Journal):
        self.out, self.data, self.ranks, self.journal = out, data, context.ranks, journal
        self.training, self.heldout = data.split(run.data.holdout, run.data.per_class)
        if len(self.training) < run.training.batch:
            journal.warn(
                f"{len(self.training)} images are fewer than a batch of {run.training.batch}: a batch repeats images."
            )
        resumed = checkpoint.resume(out) if resume else None
        self.resumed = resumed is not None
        models = self._resume(run, resumed) if resumed else self._begin(run)
        torch.manual_seed(mix(run.seed, "weights"))
        model = families.build(run.family, self.run.model, data.spec)
        parents.adopt(model, models, self.run, out)
        self.loop = Loop(self.run, model, self.training, context.device, self.ranks)
        if resumed:
            self.loop.restore(resumed)
            journal.rewind(self.loop.seen)
        self.ranks.broadcast_(model.state_dict().values())

    def _begin(self, run: Run) -> dict[str, Model]:
        """The models of the parents, by config field, whose weights the new run takes."""
        paths = {name: parents.path_of(run, self.out, name) for name in parents.parents_of(run)}
        with self.ranks.in_turn():  # the first process may still be saving a parent
            loaded = {name: checkpoint.load(path) for name, path in paths.items()}
        models = {name: parent.model for name, parent in loaded.items()}
        self.run = parents.settle(run, models)
        self.digests = {name: parent.header["digest"] for name, parent in loaded.items()}
        self.seconds_before = sum(loaded[name].header["seconds"] for name in parents.trained_first(run))
        return models

    def _resume(self, run: Run, resumed: checkpoint.Resumed) -> dict[str, Model]:
        """No models: the checkpoint has the weights of the parents."""
        if resumed.state["data"] != self.data.fingerprint and not run.training.data_changed:
            raise LimnerError(
                f"The data is not what {self.out} was trained on: name the same source and options, "
                f"or add --training.data_changed to continue with the new data."
            )
        saved = Run.from_json(resumed.header["run"])
        if saved.family != run.family:
            raise LimnerError(
                f"{self.out} is a run of {saved.family}, so it cannot resume as {run.family}: choose another --out."
            )
        self.run = parents.keep_parents(run, saved, self.out)
        self.digests = resumed.header["parents"]
        self.seconds_before = resumed.header["seconds"] - resumed.state["seconds"]
        return {}

    def train(self) -> Result:
        """Step until the budget is spent or a signal asks to stop; at least one step, unless a signal comes first."""
        run, loop, journal = self.run, self.loop, self.journal
        t, epoch = run.training, len(self.training)
        budget = parents.own_budget(run, epoch, self.seconds_before)
        if self.ranks.first:
            config.write_run(self.out, run)
        places = f"{self.ranks.world} x {loop.device}" if self.ranks.world > 1 else str(loop.device)
        journal.announce(loop.model, len(self.data), run, places, loop.estimate_cost())
        for sentence in follows(loop.model, self.data):
            journal.console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        if not self.resumed:
            self.save()  # so that there is always a state to return to, and a full disk is noticed at once
        periodic = [
            Periodic(t.save_every, epoch, loop, self.save),
            Periodic(t.sample_every, epoch, loop, self.show_samples, rest=50),
            Periodic(t.evaluate_every, epoch, loop, self.measure, rest=50),
        ]
        seen_before, seconds_before = loop.seen, loop.seconds
        start = time.monotonic() - loop.seconds
        with Signals() as signals:
            while True:
                loop.seconds, stop = self.ranks.agree(time.monotonic() - start, signals.caught)
                progress = budget.spent(loop.seconds, loop.seen)
                journal.progress(progress)
                if stop or (progress >= 1 and loop.seen):
                    break
                self.take_step(progress)
                for task in periodic:
                    task.run_if_due()
            self.save()
        losses = {}
        if not stop:
            self.show_samples()
            losses = self.measure()
        rate = (loop.seen - seen_before) / max(loop.seconds - seconds_before, 1e-9)
        return Result(self.out, loop.seen, loop.seconds, rate, stop, losses)

    def take_step(self, progress: float) -> None:
        """One step of the loop; after several in a row that were not finite, back to the last checkpoint."""
        loop, journal = self.loop, self.journal
        try:
            terms = loop.take_step(progress)
            journal.step(loop.seen, loop.step - 1, loop.seconds, terms)
        except FloatingPointError as bad:
            journal.skipped(loop.seen, str(bad))
            if loop.skipped >= SKIPS_BEFORE_ROLLBACK:
                self.roll_back()

    def roll_back(self) -> None:
        """Return to the last checkpoint, with other random draws from there. Raises LimnerError after a few times."""
        times = self.loop.rollbacks + 1
        good = checkpoint.resume(self.out)
        if times > ROLLBACKS or good is None:
            raise LimnerError(
                f"The loss was still infinite or not a number after {self.loop.rollbacks} returns to the last "
                f"checkpoint of {self.out}: lower the learning rate (--training.optimisers.*.lr) or set "
                "--training.clip 1."
            )
        self.loop.restore(good)
        self.loop.rollbacks = times
        self.journal.rewind(self.loop.seen)
        self.journal.warn(
            f"Returned to the checkpoint at {self.loop.seen:,} images, with other random draws "
            f"(return {times} of {ROLLBACKS})."
        )

    def save(self) -> None:
        if self.ranks.first:
            run, loop, data = self.run, self.loop, {"data": self.data.fingerprint}
            header = checkpoint.make_header(run, self.data.spec, loop.seen, self.digests) | data
            header["seconds"] = self.seconds_before + loop.seconds
            live, state = loop.state()
            average = loop.average.state_dict()
            checkpoint.save(self.out, average, header, live, state | data, run.training.keep)

    def show_samples(self) -> None:
        if self.ranks.first:
            like, t = self.heldout if len(self.heldout) else self.training, self.run.training
            with all_threads(self.ranks):
                sheet = sample_grid(self.loop.average, like, t.samples, t.precision)
            self.journal.picture(self.loop.seen, sheet)

    def measure(self) -> dict[str, float]:
        """The held-out losses; none if there are no such images."""
        if not self.ranks.first or not len(self.heldout):
            return {}
        with all_threads(self.ranks):
            losses = self.loop.held_out_losses(self.heldout)
        self.journal.held_out(self.loop.seen, self.loop.seconds, losses)
        return losses
