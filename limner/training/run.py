"""A training and those of the parents that it builds on: processes, the run's folder, the data."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from limner import checkpoint, config, families, files
from limner.config import Run, parse_budget
from limner.core import ImageSpec
from limner.data import open_data
from limner.data.given import settle as settle_given
from limner.device import pick_device
from limner.distributed import join
from limner.families import _by_images as by_images
from limner.inference.threads import THREADS
from limner.settings import CAPTIONED, LimnerError, join_words
from limner.text.pretrained import settle
from limner.training import parents
from limner.training.context import Context, Result
from limner.training.journal import Journal
from limner.training.session import Session

WRITTEN = re.compile(  # what a training puts into a run's folder
    r"checkpoints|samples|tensorboard|config\.json|log\.jsonl|report\.html|model\.safetensors|\..*"
)
LAUNCHER = ".launcher"  # file in an unfinished run's folder: the torchrun that began it


def train(run: Run, out: str | Path, *, resume: bool = False, quiet: bool = False) -> Result:
    """Train ``run`` into the folder ``out`` until its budget is spent or a signal asks to stop.

    Raises LimnerError for what the user can correct: an occupied folder, changed data, an invalid budget or parent;
    and KeyboardInterrupt if a signal asks to stop before the first step, which leaves no new folder behind.
    """
    run = replace(run, model=settle(run.model))
    run = replace(
        run, data=settle_given(run.sources, run.data, families.load(run.family).given_by, run.family)
    )
    out, t = Path(out), run.training
    if run.data.language != "en" and not {*run.sources} & {*CAPTIONED}:
        raise LimnerError(
            f"--data.language is for the captions of {join_words(CAPTIONED, 'and')}, which Limner writes: leave it "
            "out, since captions of your own are read in any language."
        )
    for length in (run.budget, t.save_every, t.sample_every, t.evaluate_every):
        parse_budget(length, epoch=1)  # refused now rather than after the parents are trained
    THREADS.check(t.threads, "--training.threads")
    device = pick_device(t.device)
    if int(os.environ.get("RANK", "0")):  # not the first process of this training
        with join(device) as ranks, torch.random.fork_rng():
            return _train_all(run, out, ranks.as_first(resume), Context(device, ranks, quiet=True))
    resume = resume or _restarted(out)
    parents.refuse_occupied(run, out, resume)
    with _hold(out) as lock:
        with join(device) as ranks, torch.random.fork_rng():
            if launcher := _launcher():
                files.write_text(out / LAUNCHER, f"{launcher}\n{os.getpid()}")
            result = _train_all(run, out, ranks.as_first(resume), Context(device, ranks, quiet, lock))
        if not result.stopped:  # all have finished: nothing is left to restart
            checkpoint.remove(out / LAUNCHER)
    return result


def _launcher() -> str:
    """What names the torchrun that started this process, through all its restarts; empty if none did."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return job and f"{job}, process {os.getppid()} on {socket.gethostname()}"


def _restarted(out: Path) -> bool:
    """Whether torchrun starts a training again that it began in ``out``, rather than in somebody's earlier run."""
    if not _launcher() or not (out / LAUNCHER).is_file():
        return False
    launcher, _, process = (out / LAUNCHER).read_text("utf-8", "replace").partition("\n")
    return launcher == _launcher() and process != str(os.getpid())  # a script may train twice


@contextlib.contextmanager
def _hold(out: Path) -> Iterator[checkpoint.Lock]:
    """Lock a run's folder.

    One that was new or empty is left so if the training ends before its first checkpoint, or is stopped before its
    first step.
    """
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    is_empty = bool(missing) or (out.is_dir() and not any(out.iterdir()))
    kept, lost = "*", True
    try:
        with contextlib.ExitStack() as stack:
            with files.uninterrupted():  # a signal between making the folder and knowing of it would leave it
                lock, lost = stack.enter_context(checkpoint.lock(out)), False
            try:
                yield lock
            finally:
                lost = lock.is_lost()
    except KeyboardInterrupt:
        kept = "*[1-9]*"  # not the checkpoint at 0 images, from which nothing is lost
        raise
    finally:
        if is_empty and not lost and not any(out.rglob(f"{checkpoint.CHECKPOINTS}/{kept}")):
            for path in [path for path in out.iterdir() if WRITTEN.fullmatch(path.name)]:
                checkpoint.remove(path)
            for folder in missing:
                with contextlib.suppress(OSError):  # of another run by now
                    folder.rmdir()


def _train_all(run: Run, out: Path, resume: bool, context: Context) -> Result:
    """Train the parents that no run is named for, each with its own parents, and then the run itself."""
    resume_run = resume and checkpoint.exists(out)
    with context.ranks.in_turn():
        data = open_data(run.sources, size=run.size, options=run.data, progress=not context.quiet)
    context.refuse_lost()
    if not resume_run:
        epoch = data.split(run.data.holdout, run.data.per_class, twins=True)[0].epoch
        run = _settle(run, data.spec, epoch, context)
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
            with _hold(folder) if context.ranks.first else contextlib.nullcontext() as lock:
                result = _train_all(first, folder, resume, replace(context, lock=lock))
            if result.stopped:
                return replace(result, out=out)
    with Journal(out if context.ranks.first else None, context.quiet, run.training.tensorboard) as journal:
        return Session(run, out, data, resume_run, context, journal).train()


def _settle(run: Run, spec: ImageSpec, count: int, context: Context) -> Run:
    """The run with the settings that follow its images, which a line tells."""
    model = by_images.settle(run.model, by_images.Images(spec.height, spec.width, count))
    if flags := list(by_images.chosen(run.model, model)):
        Journal(None, context.quiet).console.print(
            f"Settings that follow {count:,} {spec.noun}s of {spec.size_in_words}: {', '.join(flags)}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    return replace(run, model=model)
