"""`limner apply`: pictures through a run that Translates, each to a file of its own."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner import files
from limner.core import LimnerError, Translates
from limner.data.images.decode import as_channels, colour
from limner.data.images.whole import WholePicture, open_whole, resized
from limner.fields import JsonResult, to_json
from limner.inference.apply_files import Job, begin, jobs_of
from limner.inference.capabilities import has, lacking
from limner.inference.crops import save_crops
from limner.inference.options import ApplyOptions
from limner.inference.pipeline import Pipeline
from limner.inference.tiles import Translator
from limner.inference.whole_pictures import translate_picture
from limner.pictures.writing import encoded
from limner.progress import Watch, bar, part

AHEAD = 2  # results that wait to be written while the next picture is computed
Notes = dict[str, list[str]]  # what was changed -> the pictures


@dataclass(frozen=True, kw_only=True)
class Applied(JsonResult):
    """What a call of ``apply`` did."""

    to: str
    made: int  # pictures that this call wrote
    there: int = 0  # that an earlier, unfinished call had written
    failed: dict[str, str] = field(default_factory=dict)  # picture -> why it could not be used
    notes: Notes = field(default_factory=dict)
    crops: str | None = None  # the sheet of details


def apply(
    run: str | Path, source: str | Path, to: str | Path, options: ApplyOptions = ApplyOptions(), *,
    device: str = "auto", quiet: bool = False, **sampling: Any,
) -> Applied:  # fmt: skip
    """Translate a picture, or all pictures of a folder. ``sampling`` holds fields of the family's Sampling.

    A folder is filled file by file: after a stop the same call makes the rest. Pictures that cannot be used are left
    out, and named in ``failed``. Raises LimnerError where nothing can be made.
    """
    work, pipeline = jobs_of(Path(source), Path(to), options), Pipeline(run, device)
    if not has(pipeline.loaded, Translates):
        raise lacking(pipeline.loaded, Translates)
    translator = Translator(
        pipeline.model.eval(), pipeline.sampling(sampling), options.bytes, options.seed, options.exact
    )
    named = to_json(pipeline.named_sampling(sampling))
    todo = begin(work, {"run": pipeline.digest, "sampling": named, **options.settings()}, options.overwrite)
    failed: dict[str, str] = {}
    with bar(f"applying to {len(todo):,} pictures", quiet) as watch, Writer() as writer:
        for done, job in enumerate(todo):
            try:
                made = _one(translator, job, options, part(watch, done / len(todo), 1 / len(todo)))
            except LimnerError as error:
                failed[job.name] = str(error)
            else:
                writer.put(made, options)
    if failed and len(failed) == len(work.jobs):
        others = f" Nor can {len(failed) - 1:,} others be used." if len(failed) > 1 else ""
        raise LimnerError(next(iter(failed.values())) + others)
    if options.crops:
        save_crops(work, translator.network.scale, options)
    return Applied(
        to=str(to), made=writer.made, there=len(work.jobs) - len(todo), failed=failed, notes=writer.notes,
        crops=str(work.sheet) if options.crops else None,
    )  # fmt: skip


@dataclass(frozen=True)
class _Made:
    """A result that is not written yet."""

    job: Job
    given: WholePicture
    result: WholePicture
    notes: list[str]


def _one(translator: Translator, job: Job, options: ApplyOptions, watch: Watch) -> _Made:
    given, background = open_whole(job.source, options.metadata), colour(options.background)
    result, notes = translate_picture(translator, given, background, watch)
    if given.profile and result.grey != given.grey:  # a profile is for one kind of colours
        given = open_whole(job.source, options.metadata, profile=False)
        result, notes = translate_picture(translator, given, background, watch)
    return _Made(job, given, result, [*given.notes, *notes])


class Writer:
    """Writes results in a second thread while the next picture is computed; at the end all are written."""

    def __init__(self) -> None:
        self.made, self.notes = 0, Notes()
        self._thread, self._waiting = ThreadPoolExecutor(1), list[Future[_Made]]()

    def put(self, made: _Made, options: ApplyOptions) -> None:
        """Raises LimnerError where an earlier result could not be written."""
        self._waiting.append(self._thread.submit(_write, made, options))
        self._finish(AHEAD)

    def _finish(self, waiting: int) -> None:
        while len(self._waiting) > waiting:
            made = self._waiting.pop(0).result()
            self.made += 1
            for note in made.notes:
                self.notes.setdefault(note, []).append(made.job.name)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self._finish(0)


def _write(made: _Made, options: ApplyOptions) -> _Made:
    picture = side_by_side(made.given, made.result) if options.side_by_side else made.result
    content, notes = encoded(picture, made.job.target.suffix, colour(options.background))
    files.write_bytes(made.job.target, content)
    return replace(made, notes=[*made.notes, *notes])


def side_by_side(given: WholePicture, result: WholePicture) -> WholePicture:
    """Both at the size of the result, the given picture at the left in whole pixels."""
    height, width = result.pixels.shape[:2]
    channels = 4 if given.alpha or result.alpha else 1 if given.grey and result.grey else 3
    halves = [
        as_channels(
            pixels if pixels.shape[2] != 2 else pixels[..., [0, 0, 0, 1]],
            channels,
            (255, 255, 255),
            pixels.dtype,
        )
        for pixels in (resized(given.pixels, (width, height), Image.Resampling.NEAREST), result.pixels)
    ]
    return replace(result, pixels=np.concatenate(halves, 1))


def summary(applied: Applied) -> list[str]:
    """Sentences on what was done, for the person."""
    there = f", and {applied.there:,} were there already" if applied.there else ""
    said = [f"{applied.made:,} {'picture' if applied.made == 1 else 'pictures'} in {applied.to}{there}."]
    for note, names in applied.notes.items():
        others = f" and {len(names) - 1:,} others" if len(names) > 1 else ""
        said.append(f"{names[0]}{others}: {note}.")
    return said + ([f"Details are in {applied.crops}."] if applied.crops else [])
