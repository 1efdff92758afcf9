"""`limner apply` on a clip: frame by frame, with statistics of norms that are the same in all frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from limner import files
from limner.data.clips.survey import Survey, frames_of, survey
from limner.data.images.decode import colour
from limner.data.images.formats import FILMS
from limner.data.images.whole import WholePicture, straight
from limner.inference.applied import Applied, side_by_side
from limner.inference.apply_files import Job, Work, begin
from limner.inference.options import ApplyOptions
from limner.inference.tiles import Translator
from limner.inference.whole_pictures import translate_picture
from limner.pictures import clips
from limner.pictures.writing import encoded
from limner.progress import bar
from limner.settings import LimnerError

MEASURED = 8  # frames whose statistics the norms get, spread over the clip


def plays(source: Path, to: Path) -> bool:
    """Whether a clip is written as one, rather than the first frame of an animation as a picture."""
    suffix = to.suffix.lower()
    return source.suffix.lower() in FILMS or (suffix in clips.SUFFIXES and not to.is_dir())


def check_clip_job(source: Path, to: Path, options: ApplyOptions) -> None:
    """Raises LimnerError for what cannot be written, before a run is opened."""
    if options.suffix or options.crops or options.truth or options.exact:
        raise LimnerError(
            "--suffix, --crops, --truth and --exact are for pictures, not for clips: leave them out."
        )
    folder = not to.suffix or to.is_dir()
    if not folder:
        clips.check_clip(to, lossless=options.lossless)
    files.check_writable(to, folder=folder)
    files.refuse_to_replace(to, [source])


def apply_clip(
    translator: Translator, source: Path, to: Path, settings: Mapping[str, Any], options: ApplyOptions,
    quiet: bool = False,
) -> Applied:  # fmt: skip
    """Translate every frame, to a file at the same times, whole or not at all, or to a folder of PNGs.

    A folder is filled frame by frame, and the same call makes the rest after a stop. Raises LimnerError.
    """
    found = survey(source)
    folder = to if not to.suffix or to.is_dir() else None
    if folder is None:
        clips.check_clip(to, found.rate, options.lossless)
    jobs = [
        Job(f"frame {i}", source, to / clips.frame_name(i) if folder else to)
        for i in range(len(found.times) if folder else 1)
    ]
    todo = begin(Work(jobs, source, folder, to), settings, options.overwrite)
    wanted = {job.target.name for job in todo}
    translator.fix_statistics(_spread(frames_of(source, found.alpha), len(found.times)))
    notes = list(found.notes)
    made = 0
    with bar(f"applying to {len(found.times):,} frames", quiet) as watch, ExitStack() as stack:
        clip = None
        if folder is None:
            clip = stack.enter_context(
                clips.clip_file(to, found.rate, options.lossless, own_times=not found.even)
            )
        for i, pixels in enumerate(frames_of(source, found.alpha)):
            if clip is None and clips.frame_name(i) not in wanted:
                continue
            picture, changed = _translated(translator, pixels, options)
            notes += changed
            if clip is None:
                files.write_bytes(jobs[i].target, encoded(picture, ".png", colour(options.background))[0])
            else:
                clip.add(_as_frame(picture), _time(found, i))
            made += 1
            watch((i + 1) / len(found.times))
    notes += clip.notes if clip else []
    said = {note: [source.name] for note in dict.fromkeys(notes)}
    there = len(jobs) - len(todo) if folder else 0
    return Applied(to=str(to), made=made, there=there, notes=said, clip=True)


def _spread(frames: Iterator[np.ndarray], of: int) -> Iterator[np.ndarray]:
    """At most MEASURED of the frames, the first among them, at equal distances."""
    number = min(MEASURED, of)
    chosen = {i * of // number for i in range(number)}
    for i, frame in enumerate(frames):
        if i in chosen:
            yield frame
        if i >= max(chosen):
            return


def _translated(
    translator: Translator, pixels: np.ndarray, options: ApplyOptions
) -> tuple[WholePicture, list[str]]:
    given = WholePicture(pixels)
    result, notes = translate_picture(translator, given, colour(options.background))
    return (side_by_side(given, result) if options.side_by_side else result), notes


def _as_frame(picture: WholePicture) -> np.ndarray:
    """uint8 [H, W, 1, 3 or 4] with straight alpha."""
    pixels = straight(picture.pixels)
    return pixels if pixels.shape[2] != 2 else pixels[..., [0, 0, 0, 1]]


def _time(found: Survey, i: int) -> Fraction | None:
    """Seconds after the first frame, where frames are shown for unlike times."""
    return None if found.even else Fraction(found.times[i] - found.times[0])
