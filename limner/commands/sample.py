"""`limner sample`: new images from a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limner.commands import say
from limner.commands.options import Repeated, RunFolder, Sampling, SamplingOptions, parse_for_run, select
from limner.inference.options import SampleOptions
from limner.settings import LimnerError


@dataclass(frozen=True, kw_only=True)
class Options(SampleOptions, SamplingOptions[Sampling]):
    """Draw new images from a run. To see the sampling options of its family too: limner sample RUN --help"""

    run: RunFolder  # folder of a run, or its model.safetensors
    # number of images; prompts and labels are used in turn. Default: 64, or 8 for each prompt or label
    n: int | None = None
    prompt: Repeated = ()  # what the images should show
    label: Repeated = ()  # class that the images should show
    to: str = ""  # a .png for one sheet, or a folder for one file per image. Default: samples.png in RUN
    progress_to: str = ""  # .gif to write: how the images emerge from the noise
    device: str = "auto"  # auto, cpu, cuda


def run(argv: list[str]) -> None:
    given = parse_for_run(Options, argv, "sample")
    from limner import checkpoint
    from limner.inference.pipeline import Pipeline, captions_of
    from limner.pictures.film import Film
    from limner.pictures.grid import save_grid, save_png
    from limner.progress import bar
    from limner.synthesis import folder

    n = given.n if given.n is not None else 8 * len(given.prompt or given.label) or 64
    to = Path(given.to or checkpoint.folder_of(given.run) / "samples.png")
    if to.suffix and to.suffix.lower() != ".png":
        raise LimnerError(f"Cannot write {to}: name a .png for one sheet, or a folder for single images.")
    if given.progress_to and not given.progress_to.lower().endswith(".gif"):
        raise LimnerError(f"Cannot write {given.progress_to}: name a .gif for --progress-to.")
    if not to.suffix:
        folder.saved(to)  # a folder that cannot be used is refused before the drawing
    pipeline = Pipeline(given.run, given.device)
    options = select(SampleOptions, given)
    condition = pipeline.condition(n, options)
    captions = captions_of(pipeline.spec, condition)
    film = Film(captions)
    with bar(f"drawing {n} images") as watch:
        on_canvas = film if given.progress_to else None
        images = pipeline.tensors(
            n, watch=watch, on_canvas=on_canvas, **vars(options), **vars(given.sampling)
        )
    if given.progress_to:
        film.save(Path(given.progress_to))
    if not to.suffix:
        seeds = range(given.seed, given.seed + n)
        folder.save(to, folder.ImageBatch(images, seeds, condition, pipeline.spec))
    else:
        if n == 1:
            save_png(images[0], to, pipeline.spec.bits)
        else:
            save_grid(to, images, captions)
    say(f"{n} images in {to}")
