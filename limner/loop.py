"""The only training loop: a model's objectives, any data, one budget, exactly resumable.

Progress is counted in images seen. Every random draw comes from a generator keyed by the seed and the
position in the stream of images, so nothing random needs saving: a resumed run equals an unbroken one.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limner import checkpoint, config, families
from limner.config import Budget, Run, parse_budget
from limner.core import Batch, ImageSpec, LimnerError, Model, Objective, Stage, mix
from limner.data import Data, open_data
from limner.device import autocast, pick_device
from limner.distributed import MEET, Ranks, all_threads, join, share, useful_processes
from limner.journal import Journal
from limner.optim import make_optimiser
from limner.sample import sample_grid

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


@dataclass
class Player:
    """An objective with the parameters that it moves and the optimiser that moves them."""

    objective: Objective
    name: str  # of the submodule; numbered from its second objective on, as "discriminator 2"
    parameters: list[nn.Parameter]
    optimiser: torch.optim.Optimizer
    peaks: list[float]  # learning rates before the schedule


def learning_rate(run: Run, seen: int, progress: float) -> float:
    """The schedule's factor in [0, 1] at a share ``progress`` of the budget."""
    t = run.training
    progress = min(max(progress, 0.0), 1.0)
    factor = 1.0
    if t.schedule == "linear":
        factor = min(1.0, (1.0 - progress) / max(1.0 - t.flat, 1e-9))
    elif t.schedule == "cosine":
        late = max(progress - t.flat, 0.0) / max(1.0 - t.flat, 1e-9)
        factor = 0.5 * (1.0 + math.cos(math.pi * late))
    warm = min(1.0, (seen + t.batch) / t.warmup) if t.warmup else 1.0
    return factor * warm


class Loop:
    """One training under way: the model, its players, its average, and where they are."""

    def __init__(self, run: Run, model: Model, data: Data, device: torch.device, ranks: Ranks):
        t = run.training
        self.run, self.data, self.device, self.ranks = run, data, device, ranks
        self.model = model.to(device)
        if t.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.micro = share(t.batch, t.accumulate, ranks)
        self.seen = self.step = self.skipped = self.rollbacks = 0
        self.seconds = 0.0

        for stage in model.stages:
            model.get_submodule(stage).requires_grad_(False)
        frozen = {id(p) for stage in model.stages for p in model.get_submodule(stage).parameters()}
        optimisers: dict[str, torch.optim.Optimizer] = {}
        self.players: list[Player] = []
        for objective in model.objectives():
            if objective.trains in model.stages:
                raise ValueError(f"{objective.trains} is a frozen stage: no objective may train it")
            module = model.get_submodule(objective.trains)
            if objective.trains not in optimisers:
                if objective.trains not in t.optimisers:
                    raise LimnerError(
                        f"There is no optimiser for the submodule {objective.trains!r}: give "
                        f"training.optimisers a setting of that name."
                    )
                optimisers[objective.trains] = make_optimiser(module, t.optimisers[objective.trains])
            optimiser = optimisers[objective.trains]
            parameters = [p for p in module.parameters() if id(p) not in frozen]
            peaks = [group["lr"] for group in optimiser.param_groups]
            before = sum(player.objective.trains == objective.trains for player in self.players)
            name = f"{objective.trains} {before + 1}" if before else objective.trains
            self.players.append(Player(objective, name, parameters, optimiser, peaks))
        self.optimisers = optimisers
        self.model.requires_grad_(False)  # each turn asks for the gradients of its own submodule
        self.model.train()
        if t.compile:
            for name in optimisers:
                model.get_submodule(name).compile()

        # The averaged model shares the frozen stages' memory: they never move.
        stages = {id(m): m for m in (model.get_submodule(s) for s in model.stages)}
        self.average = copy.deepcopy(self.model, dict(stages)).eval() if t.average else self.model

    # ---- a step

    def turn(self, player: Player, rows: np.ndarray, flips: np.ndarray | None) -> dict[str, Tensor]:
        """Gradients of one player's loss over this process's share of the batch; its mean terms."""
        t, own = self.run.training, player.parameters
        for p in own:
            p.requires_grad_(True)
            p.grad = None
        sums: dict[str, Tensor] = {}
        for i in range(t.accumulate):
            at = (self.ranks.rank * t.accumulate + i) * self.micro
            part = slice(at, at + self.micro)
            batch = self.data.batch(rows[part], None if flips is None else flips[part])
            batch = Batch(self._place(batch.image), batch.condition.to(self.device))
            # Keyed by the microbatch's place in the stream, not by rank: another number of processes
            # with microbatches of the same size draws the same noise for the same images.
            torch.manual_seed(mix(self.run.seed, self.rollbacks, self.seen + at, player.name))
            with autocast(self.device, t.precision):
                terms = player.objective.loss(batch)
            total = torch.stack([v.float() for v in terms.values()]).sum()
            (total / t.accumulate).backward()
            for name, value in terms.items():
                mean = value.detach().float() / t.accumulate
                sums[name] = sums[name] + mean if name in sums else mean
        for p in own:
            p.requires_grad_(False)
        self.ranks.mean_([p.grad for p in own if p.grad is not None] + list(sums.values()))
        return sums

    def _place(self, image: Tensor) -> Tensor:
        image = image.to(self.device, non_blocking=True)
        if self.run.training.channels_last and image.ndim == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        return image

    def take_step(self, progress: float) -> dict[str, Tensor]:
        """One step: every due player's turn, then the average. Returns the mean terms.

        A loss or gradient that is not finite moves nothing; the images are named in the journal.
        """
        t = self.run.training
        rows = self.data.order(self.seen, t.batch, self.run.seed)
        flips = None
        if self.run.data.flip:
            coin = np.random.default_rng(mix(self.run.seed, self.seen, "flip"))
            flips = coin.random(t.batch) < 0.5
        before = {name: value.clone() for name, value in self._moving().items()}
        self.model.advance(self.seen)
        rate = learning_rate(self.run, self.seen, progress)
        report: dict[str, Tensor] = {}
        for player in self.players:
            if self.step % player.objective.every:
                continue
            terms = self.turn(player, rows, flips)
            gradients = [p.grad for p in player.parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            if not bool(torch.isfinite(norm + sum(terms.values()))):
                self._forget(player)
                for name, value in self._moving().items():
                    value.copy_(before[name])
                self.skipped += 1
                self.seen += t.batch
                self.step += 1
                names = [self.data.names[i] for i in rows]
                raise FloatingPointError(f"{player.name}: not finite on {', '.join(names)}")
            if t.clip:
                nn.utils.clip_grads_with_norm_(player.parameters, t.clip, norm)
            for group, peak in zip(player.optimiser.param_groups, player.peaks, strict=True):
                group["lr"] = peak * rate
            player.optimiser.step()
            self._forget(player)
            report |= {f"{player.name}/{k}": v for k, v in terms.items()}
            report[f"{player.name}/gradient"] = norm.detach()
        self._agree()
        self.skipped = 0
        self.seen += t.batch
        self.step += 1
        self._follow()
        return report

    @staticmethod
    def _forget(player: Player) -> None:
        for p in player.parameters:
            p.grad = None

    @torch.no_grad()
    def _follow(self) -> None:
        """The moving average takes one step after the live weights (Karras 2022's ramped half-life)."""
        t = self.run.training
        if not t.average or not self.ranks.first:  # only the first process saves and shows it
            return
        half = t.average
        if t.average_rampup:
            half = min(half, self.seen * t.average_rampup)
        keep = 0.5 ** (t.batch / max(half, 1e-9))
        for name in self.model.averaged:
            slow, live = self.average.get_submodule(name), self.model.get_submodule(name)
            torch._foreach_lerp_(list(slow.parameters()), list(live.parameters()), 1.0 - keep)
            for to, source in zip(slow.buffers(), live.buffers(), strict=True):
                to.copy_(source)
        kept = tuple(f"{name}." for name in (*self.model.averaged, *self.model.stages))
        rest = self.average.state_dict()
        for name, value in self.model.state_dict().items():
            if not name.startswith(kept):
                rest[name].copy_(value)

    def _moving(self) -> dict[str, Tensor]:
        """What a loss may move besides its weights: the buffers that are saved."""
        weights = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        frozen = tuple(f"{name}." for name in self.model.stages)
        state = self.model.state_dict()
        return {n: v for n, v in state.items() if n not in weights and not n.startswith(frozen)}

    @torch.no_grad()
    def _agree(self) -> None:
        """Each process moved buffers by its own images: all go on with the mean, which is what is saved.

        In float64, where the mean of equal numbers is that number.
        """
        if self.ranks.world > 1:
            moving = [value for value in self._moving().values() if value.is_floating_point()]
            means = [value.double() for value in moving]
            self.ranks.mean_(means)
            for value, mean in zip(moving, means, strict=True):
                value.copy_(mean)

    # ---- what it costs, before the first step

    def trial(self) -> tuple[float, int]:
        """(seconds a step, peak bytes) of a rehearsal that moves nothing."""
        before = {name: b.clone() for name, b in self.model.named_buffers()}  # a loss may move these
        rows = self.data.order(self.seen, self.run.training.batch, self.run.seed)
        kept: dict[int, int] = {}

        def weigh(x: Tensor) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        seconds, activations = math.inf, 0
        self.model.advance(self.seen)
        for attempt in range(2):
            start = time.perf_counter()
            for player in self.players:
                kept.clear()
                if attempt:
                    self.turn(player, rows, None)
                else:
                    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda x: x):
                        self.turn(player, rows, None)
                    activations = max(activations, sum(kept.values()))
                self._forget(player)
            seconds = min(seconds, time.perf_counter() - start)
        for name, b in self.model.named_buffers():
            b.copy_(before[name])
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return seconds, activations + 5 * weights  # weights, gradient, two moments, average

    @torch.no_grad()
    def held_out(self, data: Data, limit: int = 256) -> dict[str, float]:
        """Mean terms of every objective on held-out images: averaged weights, the same draws each time."""
        model, sums, count = self.average, {}, 0  # type: ignore[var-annotated]
        model.eval()
        for at in range(0, min(len(data), limit), self.micro):
            rows = np.arange(at, min(at + self.micro, len(data), limit))
            batch = data.batch(rows)
            batch = Batch(self._place(batch.image), batch.condition.to(self.device))
            for player, objective in zip(self.players, model.objectives(), strict=True):
                torch.manual_seed(mix("held out", at, player.name))
                with autocast(self.device, self.run.training.precision):
                    terms = objective.loss(batch)
                for name, value in terms.items():
                    key = f"{player.name}/{name}"
                    sums[key] = sums.get(key, 0.0) + float(value) * len(rows)
            count += len(rows)
        if model is self.model:
            model.train()
        return {name: value / count for name, value in sums.items()}

    # ---- saving

    def tensors(self) -> dict[str, Tensor]:
        """The live weights and every optimiser's tensors."""
        state = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            state |= checkpoint.pack_state(optimiser.state_dict(), f"optimiser/{name}")[0]
        return state

    def counters(self) -> dict[str, Any]:
        packed = {
            n: checkpoint.pack_state(o.state_dict(), f"optimiser/{n}")[1] for n, o in self.optimisers.items()
        }
        return {
            "seen": self.seen, "step": self.step, "seconds": self.seconds, "skipped": self.skipped,
            "rollbacks": self.rollbacks, "optimisers": packed,
        }  # fmt: skip

    def restore(self, resumed: checkpoint.Resumed) -> None:
        live = resumed.live_tensors
        weights = {k.removeprefix("model/"): v for k, v in live.items() if k.startswith("model/")}
        checkpoint.load_weights(self.model, weights)
        if self.average is not self.model:
            checkpoint.load_weights(self.average, resumed.model_tensors)
        for name, optimiser in self.optimisers.items():
            told = resumed.state["optimisers"][name]
            optimiser.load_state_dict(checkpoint.unpack_state(live, told))
        s = resumed.state
        self.seen, self.step, self.seconds = s["seen"], s["step"], s["seconds"]
        self.skipped, self.rollbacks = s["skipped"], s["rollbacks"]


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
        "import sys; from limner.loop import help_train; help_train(*sys.argv[1:])",
        *told,
    ]
    if int(os.environ.get("RANK", "0")) or MEET in os.environ:
        with join(device, 1, ()) as ranks, torch.random.fork_rng():
            return _train_all(run, out, resume, device, ranks, quiet=True)
    if not resume and checkpoint.exists(out):
        raise LimnerError(f"{out} already holds a run: add --resume to go on with it, or name another.")
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with checkpoint.lock(out), join(device, processes, helper) as ranks, torch.random.fork_rng():
            return _train_all(run, out, resume, device, ranks, quiet)
    finally:
        if is_new and not any(
            out.rglob(checkpoint.MODEL)
        ):  # it never began: leave nothing half-written behind
            shutil.rmtree(out, ignore_errors=True)


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
    "precision", "channels_last", "compile", "device", "processes", "save_every", "sample_every", "samples",
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
            families.load(run.family)(run.model, data.spec)
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
    model = families.load(run.family)(run.model, data.spec)
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
            about["seconds"] = before + loop.seconds
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
