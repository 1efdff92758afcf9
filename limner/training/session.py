"""The training of one run: its budget, checkpoints, sample sheets, held-out losses and returns to a sane state."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from limner import checkpoint, config, families
from limner.config import Budget, Run
from limner.core import Denoises, Generates, Model, mix
from limner.data import Data
from limner.data.items import of_few
from limner.families import _by_images as by_images
from limner.inference.sheets import sample_grid
from limner.inference.threads import THREADS
from limner.settings import LimnerError, Stopped
from limner.text.scripts import scripts_of
from limner.training import parents, resuming, sanity
from limner.training.context import Context, Result, lost
from limner.training.follows import follows, notes_on_captions, refuse_collapsed
from limner.training.journal import Journal, read_log
from limner.training.loop import Loop
from limner.training.outlook import Outlook, other_size, too_short
from limner.training.overfitting import turned
from limner.training.periodic import Periodic
from limner.training.pictures import learn_pictures
from limner.training.signals import FOLDER_LOST, Signals
from limner.training.trial import rate_at

SKIPS_BEFORE_ROLLBACK = 3  # steps in a row that were not finite
ROLLBACKS = 3  # before the training fails


class Session:
    """The training of one run, begun or resumed."""

    run: Run  # with the settings that it has from its parents
    loop: Loop
    digests: dict[str, str]  # of the parents, by config field
    seconds_before: float  # that parents took from a budget of time
    # of its first state, which says what is exploded; not a number where that was not finite
    first_loss: float

    def __init__(self, run: Run, out: Path, data: Data, resume: bool, context: Context, journal: Journal):
        self.out, self.data, self.context, self.journal = out, data, context, journal
        self.ranks = context.ranks
        self.training, heldout = data.split(run.data.holdout, run.data.per_class, twins=True)
        self.data_state = {"data": data.fingerprint, "split": resuming.split_digest(self.training, heldout)}
        self.heldout = heldout.without_twins(self.training)
        for note in self.heldout.held_out_notes:
            journal.console.print(note, markup=False, highlight=False, soft_wrap=True)
        draws = data.given is None and families.supports(run.family, Generates)
        if draws and (few := of_few(len(data), data.spec.noun, not len(heldout))):
            journal.warn(few)
        if len(self.training) < run.training.batch:
            journal.warn(
                f"{len(self.training)} {data.spec.noun}s are fewer than a batch of {run.training.batch}: a batch "
                "repeats them."
            )
        resumed = checkpoint.resume(out) if resume else None
        self.threads = resumed.state.get("threads", 0) if resumed else 0  # of the checkpoint; 0: not known
        self.resumed = resumed is not None
        models = self._resume(run, resumed) if resumed else self._begin(run)
        torch.manual_seed(mix(run.seed, "weights"))
        model = families.build(run.family, self.run.model, data.spec)
        parents.adopt(model, models, self.run, out)
        captions = [text for text in self.training.captions or () if text] if "text" in model.follows else []
        self.scripts = sorted(scripts_of(captions))
        if not resumed:
            refuse_collapsed(model, self.training)
            model.learn_texts(captions)
            learn_pictures(model, self.run)
        self.loop = Loop(self.run, model, self.training, context.device, self.ranks)
        if resumed:
            with resuming.naming_changes(self.run, resumed, out):
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
        self.first_loss = math.nan
        self.seconds_before = sum(loaded[name].header["seconds"] for name in parents.trained_first(run))
        return models

    def _resume(self, run: Run, resumed: checkpoint.Resumed) -> dict[str, Model]:
        """No models: the checkpoint has the weights of the parents."""
        saved = resuming.check(run, resumed, self.out, self.data_state)
        run = parents.keep_parents(run, saved, self.out)
        self.run = replace(run, model=by_images.keep(run.model, saved.model))
        self.digests = resumed.header["parents"]
        self.first_loss = resumed.state.get("first_loss", math.nan)
        self.seconds_before = resumed.header["seconds"] - resumed.state["seconds"]
        return {}

    def train(self) -> Result:
        """Step until the budget is spent or a signal asks to stop.

        At least one step, unless a signal comes first: then a new run raises KeyboardInterrupt.
        """
        budget = parents.own_budget(self.run, self.training.epoch, self.seconds_before)
        with self._threads(budget):
            return self._train(budget)

    def _threads(self, budget: Budget) -> AbstractContextManager[None]:
        """The threads of this run. A budget in images keeps those that it began with, which its end depends on."""
        threads, device = self.run.training.threads, self.loop.device
        if device.type != "cpu" or self.ranks.world > 1:
            return nullcontext()
        if threads != "auto":
            return THREADS.keep(threads)
        if budget.unit == "seconds":
            return THREADS.at_work(device, hooks=not self.run.training.compile)
        most = torch.get_num_threads()
        count = min(self.threads or most, most) if self.resumed else THREADS.measured()
        if max(count, self.threads) > 1 or most > 1:
            self.journal.console.print(
                resuming.of_threads(count, self.threads), highlight=False, soft_wrap=True
            )
        return THREADS.keep(count)

    def _train(self, budget: Budget) -> Result:
        run, loop, journal = self.run, self.loop, self.journal
        t, epoch = run.training, self.training.epoch
        self.threads = torch.get_num_threads()
        self.context.refuse_lost()
        if self.ranks.first:
            config.write_run(self.out, run)
        places = f"{self.ranks.world} x {loop.device}" if self.ranks.world > 1 else str(loop.device)
        cost = loop.estimate_cost()
        journal.announce(loop.model, len(self.data), run, places, cost)
        for sentence in (*self._outlook(budget, t.batch / cost[0]), *follows(loop.model, self.data)):
            journal.console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        for sentence in notes_on_captions(loop.model, self.data, run.data.flip):
            journal.warn(sentence)
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
                loop.seconds, stop = self._agree(time.monotonic() - start, signals.caught)
                progress = budget.spent(loop.seconds, loop.seen)
                journal.progress(progress)
                if (stop or (progress >= 1 and loop.seen)) and (self.save(stop) or stop):
                    break
                self.take_step(progress)
                for task in periodic:
                    task.run_if_due()
        losses = {}
        if not stop:
            self.show_samples()
            losses = self.measure()
            for sentence in (*loop.model.remarks(), *self._overfitted()) if self.ranks.first else ():
                journal.remark(loop.seen, sentence)
        rate = (loop.seen - seen_before) / max(loop.seconds - seconds_before, 1e-9)
        return Result(self.out, loop.seen, loop.seconds, rate, stop, losses, self.data.spec.noun)

    def _outlook(self, budget: Budget, rate: float) -> list[str]:
        """What the budget will give at ``rate`` images a second, in a sentence where that is worth one."""
        run, loop, spec = self.run, self.loop, self.data.spec
        outlook = Outlook(
            budget, run.budget, rate, run.training.batch, self.training.epoch, (spec.height, spec.width),
            None if self.data.tiled else self.data.own, loop.seen, loop.seconds, spec.noun,
        )  # fmt: skip
        sentence = too_short(outlook)
        measured = self.data.given is None and families.supports(
            run.family, Denoises
        )  # the rule, for such families
        if not sentence and measured and not self.resumed:  # which keeps its size
            sentence = other_size(outlook, partial(rate_at, loop))
        return [sentence] if sentence else []

    def _overfitted(self) -> list[str]:
        """A sentence where the held-out loss has risen, unless players compete: then it says nothing."""
        if len(self.loop.players) != 1:
            return []
        shown = self.loop.players[0].objective.shown
        log = read_log(self.out)
        names = {name for line in log for name in line if name.startswith("held_out/")}
        terms = {name for name in names if name.rpartition("/")[2] not in shown}
        sentence = turned(log, terms, self.training.epoch, self.data.spec.noun, self.run.data.flip)
        return [sentence] if sentence else []

    def _agree(self, seconds: float, caught: int) -> tuple[float, int]:
        """The clock and the stop signal of all processes. Raises LimnerError if the folder is gone, and Stopped for
        a signal before the first step of a new run."""
        lock = self.context.lock
        seconds, stop = self.ranks.agree(seconds, FOLDER_LOST if lock and lock.is_lost() else caught)
        if stop == FOLDER_LOST:
            raise LimnerError(lost(self.out))
        if stop and not self.loop.seen and not self.resumed:
            raise Stopped(stop)
        return seconds, stop

    def take_step(self, progress: float) -> None:
        """One step of the loop; after several in a row that were not finite, back to the last checkpoint."""
        loop, journal = self.loop, self.journal
        due = tuple(player.name for player in loop.players if not loop.step % player.objective.every)
        try:
            with THREADS.unit(due):
                terms = loop.take_step(progress)
            journal.step(loop.seen, loop.step - 1, loop.seconds, terms)
            if (threads := torch.get_num_threads()) != self.threads:
                self.threads = threads
                journal.threads(loop.seen, threads)
        except FloatingPointError as bad:
            journal.skipped(loop.seen, str(bad))
            if loop.skipped >= SKIPS_BEFORE_ROLLBACK:
                self.roll_back()

    def roll_back(self, reason: str = "its loss was infinite or not a number") -> None:
        """Return to the last sane checkpoint, with other random draws from there.

        Raises LimnerError after a few times.
        """
        times = self.loop.rollbacks + 1
        sane = checkpoint.resume(self.out)
        if times > ROLLBACKS or sane is None:
            raise LimnerError(
                f"The training of {self.out} has failed, after {self.loop.rollbacks} returns to the last sane "
                f"checkpoint: {reason}. That checkpoint is kept: lower the learning rate "
                "(--training.optimisers.*.lr) or set --training.clip 1."
            )
        self.loop.restore(sane)
        self.loop.rollbacks = times
        self.journal.rewind(self.loop.seen)
        self.journal.warn(
            f"Returned to the checkpoint at {self.loop.seen:,} images, with other random draws "
            f"(return {times} of {ROLLBACKS}), since {reason}."
        )

    def save(self, stop: int = 0) -> bool:
        """Save a checkpoint and return True if the state is sane (``sanity``); else return to the last sane one.

        With a ``stop`` signal, leave the state as it is.
        """
        reason = ""
        if self.ranks.first:
            self.context.refuse_lost()
            live, state = self.loop.state()
            average = self.loop.average.state_dict()
            loss = sanity.loss_of(self.loop, self.heldout if len(self.heldout) else self.training)
            if not math.isfinite(self.first_loss):
                self.first_loss = loss
            reason = sanity.fault(live, average, loss, self.first_loss if self.loop.seen else math.inf)
        if self.ranks.agree(0.0, bool(reason))[1]:
            if stop:
                self.journal.warn(f"Not saved, since {reason}: the last checkpoint of {self.out} is kept.")
            else:
                self.roll_back(reason or sanity.SAID_BY_FIRST)
            return False
        if self.ranks.first:
            header = checkpoint.make_header(self.run, self.data.spec, self.loop.seen, self.digests)
            header |= {"data": self.data.fingerprint, "seconds": self.seconds_before + self.loop.seconds}
            header |= {"scripts": self.scripts} if "text" in self.loop.model.follows else {}
            state |= {**self.data_state, "loss": loss, "first_loss": self.first_loss}
            state["threads"] = torch.get_num_threads()
            checkpoint.save(self.out, average, header, live, state, self.run.training.keep)
        return True

    def show_samples(self) -> None:
        if self.ranks.first:
            like, t = self.heldout if len(self.heldout) else self.training, self.run.training
            try:
                sheet = sample_grid(self.loop.average, like, t.samples, t.precision)
            except LimnerError as error:  # its images hold NaN
                self.journal.warn(str(error))
            else:
                self.journal.picture(self.loop.seen, sheet)

    def measure(self) -> dict[str, float]:
        """The held-out losses; none if there are no such images."""
        if not self.ranks.first or not len(self.heldout):
            return {}
        losses = self.loop.held_out_losses(self.heldout)
        self.journal.held_out(self.loop.seen, self.loop.seconds, losses)
        return losses
