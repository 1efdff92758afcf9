"""A run that is served: its model, how it runs, and how many rows its calls may have."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch

from limner.core import Generates, Model
from limner.device import autocast
from limner.diffusion.sampling import Call, draw
from limner.inference.pipeline import Pipeline
from limner.inference.precision import choose_bf16, network_name
from limner.inference.threads import THREADS, processors
from limner.serve.engine.knobs import card_of
from limner.serve.engine.other_load import is_busy_now
from limner.serve.engine.probes import DrawingProbe, NetworkProbe
from limner.serve.engine.row_classes import (
    Class,
    Measured,
    find,
    machine,
    read,
    short_hash,
    write,
)
from limner.serve.engine.rows import Rows
from limner.serve.engine.texts import describe_alone
from limner.serve.messages import Card
from limner.serve.options import ServeOptions
from limner.settings import ThreadCount

Batching = Literal["exact", "quick", "whole", "single"]
Precision = Literal["auto", "float32", "bf16"]
TYPICAL = 8  # rows, by which precision is chosen
ALONE = Class((1,), "alone")  # where memory allows no more
STRANGERS = 16  # rows that stand beside others when a call is done again

Say = Callable[[str], object]


def say_to_person(words: str) -> None:
    print(f"limner: {words}", file=sys.stderr, flush=True)


def flies(model: Any) -> bool:
    """Whether a model's images are drawn by the solvers that all denoisers share, so that requests share its calls."""
    return getattr(type(model), "sample", None) is draw


def set_threads(wanted: ThreadCount) -> int:
    """Run all networks of this process on so many threads from now on, since bits depend on it."""
    THREADS.use(processors() if wanted == "auto" else wanted)
    return torch.get_num_threads()


@dataclass
class Counters:
    """What a model did since the start."""

    calls: int = 0
    rows: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    images: int = 0
    cancelled: int = 0
    out_of_memory: int = 0
    mismatches: int = 0


class Served:
    """A run that answers requests. ``measure`` comes before anything is drawn."""

    def __init__(self, id: str, pipeline: Pipeline, batching: Batching = "exact", say: Say = say_to_person):
        self.id, self.pipeline, self.batching, self.say = id, pipeline, batching, say
        self.model: Any = pipeline.model
        self.draws = isinstance(pipeline.model, Generates)
        self.flies = self.draws and flies(self.model)
        self.in_bf16 = False
        self.measured: Measured | None = None
        self.rows, self.longer, self.bits = Rows((1,)), Rows((1,)), ""  # ``longer``: with long texts
        self.counters = Counters()
        self.counted: dict[str, int] = {}  # evaluations of an image, by kind of request
        self.drawn = 0  # batches of a model that draws by itself
        self._pace: torch.cuda.Event | None = None  # the end of the last call
        self.fixed = False  # one number of rows, since others were found to differ
        if self.flies:
            describe_alone(self.model)

    @property
    def device(self) -> torch.device:
        return self.pipeline.model.device

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """In which everything of this model runs."""
        with torch.inference_mode(), autocast(self.device, self.in_bf16):
            yield

    def keep_pace(self) -> None:
        """Wait for the call before the last one, so that a GPU is never more than a call behind."""
        if self.device.type == "cuda":
            if self._pace is not None:
                self._pace.synchronize()
            self._pace = torch.cuda.Event()
            self._pace.record()

    def rows_of(self, call: Call) -> Rows:
        """How many rows like this one a call may have."""
        tokens = call.rows.tokens
        return self.rows if tokens is None or tokens.shape[1] <= self.model.embed.short else self.longer

    # ---- what was measured

    def measure(self, precision: Precision = "auto") -> None:
        """Choose the precision and the numbers of rows, or take what was found before on this machine."""
        if not self.draws:
            self.in_bf16 = precision == "bf16"
            return
        self._key = {"model": self.pipeline.digest, "precision": precision, **machine(self.device)}
        found = read(self._key)
        if found is None or (found.busy and not is_busy_now(torch.get_num_threads())):
            self.in_bf16 = found.in_bf16 if found else self._choose_bf16(precision)
            with self.context():
                found = find(self.model, self.flies, self.in_bf16, found)
            write(self._key, found)
        self.in_bf16, self.measured = found.in_bf16, found
        self._take(found.chosen, found.rows(self.batching))
        self.longer = found.rows(self.batching, long=True)
        self.say(f"{self.id} draws in {'bf16' if self.in_bf16 else 'float32'}, {self._in_words()}.")

    def _choose_bf16(self, precision: Precision) -> bool:
        model = self.model
        run: Callable[[Sequence[int]], object] = (
            NetworkProbe(model, TYPICAL).run if self.flies else DrawingProbe(model).run
        )

        def timed(in_bf16: bool) -> None:
            with torch.inference_mode(), autocast(self.device, in_bf16):
                run(range(TYPICAL))

        name = network_name(model.family, (model.config, model.spec, self.flies), TYPICAL, "serve")
        return choose_bf16(self.device, precision, name, timed)

    def _take(self, chosen: Class, rows: Rows) -> None:
        self.rows, self.bits = rows, chosen.bits

    def _in_words(self) -> str:
        least, most = self.rows.counts[0], self.rows.most
        what = "rows" if self.flies else "images"
        number = f"{most}" if least == most else f"{least} to {most}"
        return f"one {what[:-1]} a call" if most == 1 else f"{number} {what} a call"

    def shrink(self, count: int) -> bool | None:
        """Allow fewer rows than ``count``, which were too many. Whether bits change; None: fewer cannot be."""
        if count <= 1:
            return None
        assert self.measured
        cap = max(1, count // 2)
        changed = False
        longer = self.longer.limited(cap)
        if longer is None:
            self.measured = replace(self.measured, longer=ALONE)
            longer, changed = Rows(ALONE.counts), True
        self.longer = longer
        if rows := self.rows.limited(cap):
            self.rows = rows
        else:
            found = None if self.fixed else self.measured.within(cap)
            self._take(*(found or (ALONE, Rows(ALONE.counts))))
            changed = True
        self.say(f"{self.id}: memory ran short at {count} rows, so it draws {self._in_words()} from now on.")
        return changed

    def fix(self) -> bool:
        """Calls have one number of rows from now on, since rows were found to depend on others. Whether bits change."""
        if self.fixed or self.measured is None:
            return False
        chosen, longer = fixed(self.measured.chosen, self.rows), self.measured.longer
        longer = longer and fixed(longer, self.longer)
        self.fixed = True
        self.measured = replace(self.measured, chosen=chosen, others=(), longer=longer, busy=False)
        self._take(chosen, Rows(chosen.counts))
        self.longer = Rows((longer or chosen).counts)
        write(self._key, self.measured)
        return True

    # ---- what others see

    @property
    def fingerprint(self) -> str:
        """Names all that the bytes of an image depend on besides its request."""
        longer = self.measured and self.measured.longer and self.measured.longer.bits
        bits = "quick" if self.batching in ("quick", "single") else [self.bits, longer]
        parts = [self.pipeline.digest, bits, self.in_bf16, machine(self.device)]
        return f"lim_{short_hash(parts)}"

    @cached_property
    def _card(self) -> Card:
        return card_of(self.id, self.pipeline)

    @property
    def card(self) -> Card:
        return replace(self._card, fingerprint=self.fingerprint)

    @cached_property
    def strangers(self) -> list[Call]:
        """Rows that nobody asked for, to stand beside others."""
        with self.context():
            return NetworkProbe(self.model, STRANGERS).calls


def fixed(one: Class, rows: Rows) -> Class:
    """The class of the least of its numbers of rows alone."""
    return Class(rows.counts[:1], f"fixed {one.bits}")


def load(
    runs: Mapping[str, str], options: ServeOptions, say: Say = say_to_person
) -> dict[str, Served]:  # fmt: skip
    """The runs by their ids, loaded and measured. Raises LimnerError for one that cannot be.

    The number of threads is set before, by ``set_threads``.
    """
    served: dict[str, Served] = {}
    for name, path in runs.items():
        served[name] = Served(name, Pipeline(path, options.device), options.batching, say)
        served[name].measure(options.precision)
    if any(one.in_bf16 for one in served.values()):
        keep_casts()
    return served


def keep_casts() -> None:
    """From now on keep the weights in bf16 that autocast makes, rather than make them again for every call.

    Of this whole process, in which no weight may change any more.
    """
    if torch.autocast_increment_nesting() > 1:  # they are kept as long as some context is open
        torch.autocast_decrement_nesting()


def models_of(served: Mapping[str, Served]) -> dict[str, Model]:
    """The models by id, for settings that name one."""
    return {name: one.pipeline.model for name, one in served.items()}
