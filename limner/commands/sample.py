"""`limner sample`: new images from a run."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import files
from limner.commands import say
from limner.commands.options import Repeated, RunFolder, Sampling, SamplingOptions, parse_for_run, select
from limner.fields import Count
from limner.inference.options import ClipOptions, SampleOptions
from limner.settings import LimnerError, ThreadCount, join_words, signal_of

if TYPE_CHECKING:
    from torch import Tensor

    from limner.inference.pipeline import Pipeline
    from limner.pictures.film import Film
    from limner.synthesis.draw import Request


@dataclass(frozen=True, kw_only=True)
class Options(SampleOptions, ClipOptions, SamplingOptions[Sampling]):
    """Draw new images from a run. To see the sampling options of its family too: limner sample RUN --help"""

    run: RunFolder  # folder of a run, or its model.safetensors
    # number of images; prompts and labels are used in turn. Default: 64, 8 for each prompt or label, 9 for a blend; of
    # clips an eighth on a sheet, else one, or one for each prompt or label
    n: Count | None = None
    prompt: Repeated = ()  # what the images should show
    label: Repeated = ()  # class that the images should show
    # a .png for one sheet, or a folder for one file per image. Default: samples.png in RUN. Of clips also a .mp4,
    # .webm, .gif or .webp, in which several play side by side; a folder holds the frames of one clip, or several clips
    to: str = ""
    progress_to: str = ""  # .gif to write: how the images emerge from the noise
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again


def run(argv: list[str]) -> int:
    given = parse_for_run(Options, argv, "sample")
    from limner import checkpoint
    from limner.inference.pipeline import Pipeline
    from limner.synthesis.draw import Request

    to = Path(given.to or checkpoint.folder_of(given.run) / "samples.png")
    film_to = Path(given.progress_to) if given.progress_to else None
    _check_paths(given, to, film_to)
    pipeline, options = Pipeline(given.run, given.device), select(SampleOptions, given)
    clips = _clip_options(pipeline, given, to)
    n = given.n or _default_number(given, to, clips is not None)
    if options.rank:
        pipeline.ranking(n, options)  # refuses what it cannot choose, before anything is drawn
    request = Request(pipeline, pipeline.condition(n, options), options, vars(given.sampling), clips)
    if to.suffix or (clips and n == 1 and not clips.suffix):
        _file(request, to, film_to)
    elif stopped := _folder(request, to, film_to):
        return 128 + stopped
    say(f"{n} {'images' if not clips else 'clip' if n == 1 else 'clips'} in {to}")
    return 0


def _check_paths(given: Any, to: Path, film_to: Path | None) -> None:
    """Raises LimnerError for what no run can write, before one is opened."""
    from limner.pictures.clips import SUFFIXES

    if to.suffix and to.suffix.lower() not in (".png", *SUFFIXES):
        raise LimnerError(
            f"Cannot write {to}: name a .png for one sheet, a folder for single images, or of a run that draws clips a "
            f"{join_words([*SUFFIXES])}."
        )
    if film_to and film_to.suffix.lower() != ".gif":
        raise LimnerError(f"Cannot write {film_to}: name a .gif for --progress-to.")
    if os.path.isfile(to) and not to.suffix:
        files.refuse_other_files(to, "--to")
    files.refuse_to_replace(to, [given.image, given.mask, given.last, given.video, *(given.blend or ())])
    files.check_writable(to, folder=not to.suffix)
    if film_to:
        files.check_writable(film_to)
    if given.rank and film_to:
        raise LimnerError(
            "A film shows how images are drawn, not how they are chosen: leave out --progress-to."
        )


def _clip_options(pipeline: Pipeline, given: Any, to: Path) -> ClipOptions | None:
    """How the run's clips are written; None where it draws still images. Raises LimnerError for what cannot be."""
    from limner.pictures.clips import ASSUMED_RATE, check_clip

    options = select(ClipOptions, given)
    if pipeline.spec.frames == 1:
        if to.suffix and to.suffix.lower() != ".png":
            raise LimnerError(
                f"{to} is a clip, and this run draws still images: name a .png for one sheet, or a folder for single "
                "images."
            )
        if options != ClipOptions():
            raise LimnerError(
                "--rate, --lossless and --suffix are of clips, and this run draws still images."
            )
        return None
    if given.rank:
        raise LimnerError("--rank chooses among still images, and this run draws clips: leave it out.")
    rate = options.rate or pipeline.spec.rate or ASSUMED_RATE
    if to.suffix and options.suffix:
        raise LimnerError(f"--suffix is for clips in a folder, and {to} names a file: leave it out.")
    if to.suffix.lower() != ".png":
        check_clip(to.with_suffix(to.suffix or f".{options.suffix or 'webp'}"), rate, options.lossless)
    return replace(options, rate=rate)


def _default_number(given: Any, to: Path, clips: bool) -> int:
    named = len(given.prompt or given.label)
    if given.blend:
        return 9
    if not clips:
        return 8 * named or 64
    return named or (8 if to.suffix.lower() == ".png" else 1)


def _file(request: Request, to: Path, film_to: Path | None) -> None:
    """One image, a sheet, or of clips a file or the folder of one's frames."""
    from limner.inference.pipeline import captions_of
    from limner.pictures.clips import ASSUMED_RATE, save_clips, save_frames
    from limner.pictures.film import Film
    from limner.pictures.grid import save_grid, save_png

    pipeline, clips, n = request.pipeline, request.clips, request.condition.size
    captions = captions_of(pipeline.spec, request.condition)
    film = Film(captions) if film_to else None
    if clips and not to.suffix:
        files.refuse_other_files(to, "--to")
    images, captions = _best(request) if request.options.rank else (_all(request, film), captions)
    notes: list[str] = []
    with files.together():
        if film and film_to:
            film.save(film_to)
        if clips and not to.suffix:
            save_frames(to, images[0].movedim(1, 0), bits=pipeline.spec.bits)
        elif clips:
            notes = save_clips(to, images, clips.rate or ASSUMED_RATE, clips.lossless, captions)
        elif n == 1:
            save_png(images[0], to, pipeline.spec.bits)
        else:
            save_grid(to, images, captions)
    for note in notes:
        say(f"{to.name}: {note}.")


def _all(request: Request, film: Film | None) -> Tensor:
    from torch import cat

    from limner.progress import bar

    with bar(f"drawing {request.condition.size} {request.pipeline.spec.noun}s") as watch:
        return cat(list(request.batches(0, watch, film)))


def _best(request: Request) -> tuple[Tensor, list[str]]:
    """The images that fit their prompts best, and what is said of each."""
    from limner.inference.pipeline import captions_of
    from limner.progress import bar

    pipeline, options = request.pipeline, request.options
    with bar(f"drawing {options.candidates} candidates for each prompt") as watch:
        best = pipeline.best(request.condition.size, watch=watch, **vars(options), **request.sampling)
    rows = zip(captions_of(pipeline.spec, request.condition) or (), best.seeds, best.scores, strict=True)
    say(f"Chosen: seeds {', '.join(map(str, best.seeds))}; each draws its image again with --seed.")
    return best.images, [f"{text}, seed {seed}, {score:.1f}" for text, seed, score in rows]


def _folder(request: Request, to: Path, film_to: Path | None) -> int:
    """Returns the signal that stopped it, or 0."""
    from limner.synthesis.draw import draw_folder
    from limner.synthesis.folder import count_drawn

    n = request.condition.size
    try:
        draw_folder(request, to, film_to)
    except KeyboardInterrupt as stop:
        say(f"Stopped with {count_drawn(to):,} of {n:,} images in {to}. Resume with the same command.")
        return signal_of(stop)
    return 0
