"""`limner apply`: pictures through a run that Translates, each to a file of its own."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limner import files
from limner.core import LimnerError, Translates
from limner.data.images.decode import as_channels, colour
from limner.data.images.whole import WholePicture, open_whole
from limner.fields import JsonResult
from limner.inference.apply_files import Job, begin, jobs_of
from limner.inference.capabilities import has, lacking
from limner.inference.options import ApplyOptions
from limner.inference.pipeline import Pipeline
from limner.inference.tiles import Translator
from limner.networks.images.resample import enlarge
from limner.pictures.writing import encoded
from limner.progress import Watch, bar, ignore, part

CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}
AHEAD = 2  # results that wait to be written while the next picture is computed


@dataclass(frozen=True, kw_only=True)
class Applied(JsonResult):
    """What a call of ``apply`` did."""

    to: str
    made: int  # pictures that this call wrote
    there: int = 0  # that an earlier, unfinished call had written
    failed: dict[str, str] = field(default_factory=dict)  # picture -> why it could not be used
    notes: dict[str, list[str]] = field(default_factory=dict)  # what was changed -> the pictures


def apply(
    run: str | Path, source: str | Path, to: str | Path, options: ApplyOptions = ApplyOptions(), *,
    device: str = "auto", quiet: bool = False, **sampling: Any,
) -> Applied:  # fmt: skip
    """Translate a picture or all pictures of a folder. ``sampling`` holds fields of the family's Sampling.

    A folder is filled file by file: after a stop the same call makes the rest. What cannot be used is left out, and
    named in ``failed``. Raises LimnerError where nothing can be made.
    """
    work = jobs_of(Path(source), Path(to), options)
    pipeline = Pipeline(run, device)
    if not has(pipeline.loaded, Translates):
        raise lacking(pipeline.loaded, Translates)
    opened = pipeline.sampling(sampling)
    settings = {"run": pipeline.digest, "sampling": pipeline.named_sampling(sampling), **options.settings()}
    todo = begin(work, settings, options.overwrite)
    translator = Translator(pipeline.model.eval(), opened, options.bytes, options.seed)
    applier = _Applier(pipeline, translator, options)
    applied = Applied(to=str(to), made=0, there=len(work.jobs) - len(todo))
    with bar(f"applying to {len(todo):,} pictures", quiet) as watch:
        applied = applier.all(todo, applied, watch)
    if not applied.made and not applied.there and applied.failed:
        raise LimnerError(_failures(applied.failed))
    return applied


def _failures(failed: Mapping[str, str]) -> str:
    first = next(iter(failed.values()))
    others = f" So is it with {len(failed) - 1:,} more pictures." if len(failed) > 1 else ""
    return first + others


@dataclass
class _Applier:
    """One run over many pictures."""

    pipeline: Pipeline
    translator: Translator
    options: ApplyOptions

    def all(self, todo: list[Job], applied: Applied, watch: Watch) -> Applied:
        """Make every picture; files are written by a second thread while the next one is computed."""
        made, failed, notes = 0, dict(applied.failed), dict[str, list[str]]()
        waiting: list[tuple[Job, Future[list[str]]]] = []
        with ThreadPoolExecutor(1) as writer:

            def finish(count: int) -> Iterator[None]:
                while len(waiting) > count:
                    job, future = waiting.pop(0)
                    for note in future.result():
                        notes.setdefault(note, []).append(job.name)
                    yield

            for done, job in enumerate(todo):
                try:
                    result, said = self.one(job.source, part(watch, done / len(todo), 1 / len(todo)))
                except LimnerError as error:
                    failed[job.name] = str(error)
                    continue
                for note in said:
                    notes.setdefault(note, []).append(job.name)
                waiting.append((job, writer.submit(self.write, result, job.target)))
                made += sum(1 for _ in finish(AHEAD))
            made += sum(1 for _ in finish(0))
        return dataclasses.replace(applied, made=made, failed=failed, notes=notes)
