"""`limner apply`: pictures through a run that Translates, each to a file of its own."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limner import files
from limner.core import LimnerError, Translates
from limner.data.clips.survey import is_clip
from limner.data.images.decode import colour
from limner.data.images.whole import WholePicture, open_whole
from limner.fields import to_json
from limner.inference.applied import Applied, Notes, side_by_side
from limner.inference.apply_clips import apply_clip, check_clip_job, plays
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


def apply(
    run: str | Path, source: str | Path, to: str | Path, options: ApplyOptions = ApplyOptions(), *,
    device: str = "auto", quiet: bool = False, **sampling: Any,
) -> Applied:  # fmt: skip
    """Translate a picture, all pictures of a folder, or a clip. ``sampling`` holds fields of the family's Sampling.

    A folder is filled file by file: after a stop the same call makes the rest. Pictures that cannot be used are left
    out, and named in ``failed``. Raises LimnerError where nothing can be made.
    """
    clip = is_clip(Path(source)) and plays(Path(source), Path(to))
    if clip:
        check_clip_job(Path(source), Path(to), options)
    elif options.lossless:
        raise LimnerError("--lossless is for clips: leave it out.")
    work = None if clip else jobs_of(Path(source), Path(to), options)
    pipeline = Pipeline(run, device)
    if not has(pipeline.loaded, Translates):
        raise lacking(pipeline.loaded, Translates)
    translator = Translator(
        pipeline.model.eval(), pipeline.sampling(sampling), options.bytes, options.seed, options.exact
    )
    named = to_json(pipeline.named_sampling(sampling))
    settings = {"run": pipeline.digest, "sampling": named, **options.settings()}
    if work is None:
        return apply_clip(translator, Path(source), Path(to), settings, options, quiet)
    todo = begin(work, settings, options.overwrite)
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
