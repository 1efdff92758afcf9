"""`limner sample`: new images from a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import files
from limner.commands import say
from limner.commands.options import Repeated, RunFolder, Sampling, SamplingOptions, parse_for_run, select
from limner.fields import Count
from limner.inference.options import SampleOptions
from limner.settings import LimnerError, ThreadCount, signal_of

if TYPE_CHECKING:
    from limner.inference.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Options(SampleOptions, SamplingOptions[Sampling]):
    """Draw new images from a run. To see the sampling options of its family too: limner sample RUN --help"""

    run: RunFolder  # folder of a run, or its model.safetensors
    # number of images; prompts and labels are used in turn. Default: 64, 8 for each prompt or label, 9 for a blend
    n: Count | None = None
    prompt: Repeated = ()  # what the images should show
    label: Repeated = ()  # class that the images should show
    to: str = ""  # a .png for one sheet, or a folder for one file per image. Default: samples.png in RUN
    progress_to: str = ""  # .gif to write: how the images emerge from the noise
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again


def run(argv: list[str]) -> int:
    given = parse_for_run(Options, argv, "sample")
    from limner import checkpoint
    from limner.inference.pipeline import Pipeline

    n = given.n or (9 if given.blend else 8 * len(given.prompt or given.label) or 64)
    to = Path(given.to or checkpoint.folder_of(given.run) / "samples.png")
    film_to = Path(given.progress_to) if given.progress_to else None
    if to.suffix and to.suffix.lower() != ".png":
        raise LimnerError(f"Cannot write {to}: name a .png for one sheet, or a folder for single images.")
    if film_to and film_to.suffix.lower() != ".gif":
        raise LimnerError(f"Cannot write {film_to}: name a .gif for --progress-to.")
    if os.path.isfile(to) and not to.suffix:
        files.refuse_other_files(to, "--to")
    files.refuse_to_replace(to, [given.image, given.mask, *(given.blend or ())])
    files.check_writable(to, folder=not to.suffix)
    if film_to:
        files.check_writable(film_to)
    if given.rank and film_to:
        raise LimnerError(
            "A film shows how images are drawn, not how they are chosen: leave out --progress-to."
        )
    pipeline, options = Pipeline(given.run, given.device), select(SampleOptions, given)
    if options.rank:
        pipeline.ranking(n, options)  # refuses what it cannot choose, before anything is drawn
    if to.suffix:
        _sheet(pipeline, to, n, options, vars(given.sampling), film_to)
    elif stopped := _folder(pipeline, to, n, options, vars(given.sampling), film_to):
        return 128 + stopped
    say(f"{n} images in {to}")
    return 0


def _sheet(
    pipeline: Pipeline, to: Path, n: int, options: SampleOptions, sampling: Mapping[str, Any], film_to: Path | None
) -> None:  # fmt: skip
    from limner.inference.pipeline import captions_of
    from limner.pictures.film import Film
    from limner.pictures.grid import save_grid, save_png
    from limner.progress import bar

    asked = {**vars(options), **sampling}
    captions = captions_of(pipeline.spec, pipeline.condition(n, options))
    film = Film(captions) if film_to else None
    if options.rank:
        with bar(f"drawing {options.candidates} candidates for each prompt") as watch:
            best = pipeline.best(n, watch=watch, **asked)
        images, rows = best.images, zip(captions or (), best.seeds, best.scores, strict=True)
        captions = [f"{text}, seed {seed}, {score:.1f}" for text, seed, score in rows]
        say(f"Chosen: seeds {', '.join(map(str, best.seeds))}; each draws its image again with --seed.")
    else:
        with bar(f"drawing {n} images") as watch:
            images = pipeline.tensors(n, watch=watch, on_canvas=film, **asked)
    with files.together():
        if film and film_to:
            film.save(film_to)
        if n == 1:
            save_png(images[0], to, pipeline.spec.bits)
        else:
            save_grid(to, images, captions)


def _folder(
    pipeline: Pipeline, to: Path, n: int, options: SampleOptions, sampling: Mapping[str, Any], film_to: Path | None
) -> int:  # fmt: skip
    """Returns the signal that stopped it, or 0."""
    from limner.synthesis.draw import Request, draw_folder
    from limner.synthesis.folder import count_drawn

    request = Request(pipeline, pipeline.condition(n, options), options, sampling)
    try:
        draw_folder(request, to, film_to)
    except KeyboardInterrupt as stop:
        say(f"Stopped with {count_drawn(to):,} of {n:,} images in {to}. Resume with the same command.")
        return signal_of(stop)
    return 0
