"""The engine's process: loads the runs, reads what the front asks, and draws, describes and translates in turn.

Networks run in the main thread alone. Others read, write, decode and encode, and are joined before it ends.
"""

from __future__ import annotations

import queue
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from limner.data import mask_from_bytes, picture_from_bytes
from limner.inference.pipeline import Pipeline
from limner.serve.engine.line import Line
from limner.serve.engine.models import Served, load, set_threads
from limner.serve.engine.scheduler import Scheduler
from limner.serve.engine.understanding import Describer
from limner.serve.heap import share_one_heap
from limner.serve.messages import Cancel, Card, Event, Ready, Report, Stop, Work, added
from limner.serve.options import ServeOptions, named_runs
from limner.settings import LimnerError

DECODERS = 2  # pictures that are decoded at once
REPORTING = 1.0  # seconds between reports
MISTAKE = 2
NO_MODEL = "There is no such model here: see /v1/models."


@dataclass(frozen=True)
class Prepared:
    """A work whose pictures are decoded, or why they cannot be."""

    work: Work
    picture: Tensor | None = None  # [1, C, h, w] in [-1, 1]
    mask: Tensor | None = None  # [1, 1, h, w] in {0, 1}
    refused: Event | None = None


def run(fd: int, options: ServeOptions) -> int:
    """Answer the front at the other end of a socket until it is gone or says Stop. Returns an exit code."""
    warnings.showwarning = lambda message, *_, **__: print(f"limner: {message}", file=sys.stderr)
    share_one_heap()
    line = Line(socket.socket(fileno=fd))
    try:
        set_threads(options.threads)
        engine = Engine(options, line)
    except Exception as error:  # the front says it to the person
        if not isinstance(error, LimnerError):
            traceback.print_exc()
        words = str(error) or type(error).__name__
        line.send(Event(0, "failed", status=500, code="engine_start", message=words))
        line.close()
        return MISTAKE
    try:
        engine.work()
    finally:
        engine.close()
        line.close()
    return 0


class Engine:
    """The served models, and the works that are asked of them."""

    def __init__(self, options: ServeOptions, line: Line):
        """Raises LimnerError for a run that cannot be loaded."""
        self.line = line
        self.served: dict[str, Served] = load(named_runs(options.runs), options)
        self.scheduler = Scheduler(self.served, line.send)
        for one in self.served.values():
            _run_in(one.pipeline, options)
        self.describer = Describer({name: one.pipeline for name, one in self.served.items()}, line.send)
        self.decoders = ThreadPoolExecutor(DECODERS, "decode")
        self.preparing = set[int]()  # works whose pictures are being decoded
        self.said: dict[str, Report] = {}  # the reports that were sent
        self.due = 0.0  # when the next ones may be
        self.cards: tuple[Card, ...] = ()
        self.say_cards()

    def work(self) -> None:
        """Until the front is gone or says Stop."""
        while all(map(self.take, self.news())):
            self.describer.step()
            self.scheduler.step()
            self.report()

    def news(self) -> Iterator[Any]:
        """What has arrived; waits for it where there is nothing else to do."""
        try:
            if self.scheduler.idle and self.describer.idle:
                unsaid = self.reports() != self.said
                wait = max(self.due - time.monotonic(), 0.0) if unsaid else None
                yield self.line.arrived.get(timeout=wait)
            while True:
                yield self.line.arrived.get_nowait()
        except queue.Empty:
            return

    def take(self, message: Work | Cancel | Stop | Prepared | None) -> bool:
        """Act on what has arrived; whether to go on."""
        if isinstance(message, Work):
            self.admit(message)
        elif isinstance(message, Prepared):
            self.begin(message)
        elif isinstance(message, Cancel):
            self.cancel(message.work)
        return not (message is None or isinstance(message, Stop))

    def admit(self, work: Work) -> None:
        if work.model not in self.served:
            self.refuse(Event(work.id, "failed", status=404, code="model_not_found", message=NO_MODEL))
        elif work.kind != "draw":
            self.describer.submit(work)
        elif work.pictures:
            self.preparing.add(work.id)
            self.decoders.submit(self.prepare, work)
        else:
            self.begin(Prepared(work))

    def prepare(self, work: Work) -> None:
        """Decode the pictures of a work, in a thread of its own."""
        pipeline = self.served[work.model].pipeline
        spec, options = pipeline.spec, pipeline.loaded.run.data
        param, mask = "image", None
        try:
            picture = picture_from_bytes(work.pictures[0], spec.given or spec, options)
            if work.mask:
                param = "mask"
                mask = mask_from_bytes(work.mask, work.pictures[0], spec, options)
            self.line.arrived.put(Prepared(work, picture, mask))
        except Exception as error:
            known = isinstance(error, LimnerError)
            if not known:
                traceback.print_exc()
            words = str(error) if known else f"The {param} cannot be decoded: save it as a PNG."
            failed = Event(work.id, "failed", status=400, code="invalid_image", param=param, message=words)
            self.line.arrived.put(Prepared(work, refused=failed))

    def begin(self, prepared: Prepared) -> None:
        work = prepared.work
        if work.pictures and work.id not in self.preparing:  # cancelled meanwhile
            return
        self.preparing.discard(work.id)
        if prepared.refused:
            self.refuse(prepared.refused)
        else:
            self.scheduler.submit(work, prepared.picture, prepared.mask)

    def refuse(self, failed: Event) -> None:
        self.line.send(failed)
        self.line.send(Event(failed.work, "ended"))

    def cancel(self, work: int) -> None:
        if work in self.preparing:
            self.preparing.discard(work)
            self.line.send(Event(work, "ended", cancelled=True))
        self.describer.cancel(work)
        self.scheduler.cancel(work)

    def reports(self) -> dict[str, Report]:
        """Of each model, what was drawn and what was described."""
        drawn, described = self.scheduler.reports(), self.describer.reports
        return {name: added(drawn[name], described[name]) for name in self.served}

    def report(self) -> None:
        """Send the reports and cards that have changed, at most once a second."""
        if (now := time.monotonic()) < self.due or (reports := self.reports()) == self.said:
            return
        for name, report in reports.items():
            if report != self.said.get(name):
                self.line.send(report)
        self.said, self.due = reports, now + REPORTING
        self.say_cards()

    def say_cards(self) -> None:
        """Say what the models are where that has changed: where memory ran short, images have other bytes."""
        cards = tuple(one.card for one in self.served.values())
        if cards != self.cards:
            self.cards = cards
            self.line.send(Ready(cards))

    def close(self) -> None:
        self.decoders.shutdown(wait=True, cancel_futures=True)


def _run_in(pipeline: Pipeline, options: ServeOptions) -> None:
    """Have a run describe pictures in the precision that the options name, if they name one."""
    if options.precision != "auto":
        run = pipeline.loaded.run
        training = replace(run.training, precision=options.precision)
        pipeline.loaded = pipeline.loaded._replace(run=replace(run, training=training))
