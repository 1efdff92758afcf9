"""The command that draws: `limner sample`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from limner import config
from limner.commands import name_the_run, say
from limner.settings import LimnerError


def sample(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        config.parse_sample(argv)
        raise LimnerError(name_the_run("sample"))
    from limner import checkpoint
    from limner.inference.pipeline import Film, Pipeline, Request, captions_of
    from limner.pictures.grid import grid, to_pil
    from limner.progress import bar
    from limner.synthesis import folder

    pipeline = Pipeline(argv[0], config.early(argv, "--device") or "auto")
    given = config.parse_sample(argv, pipeline.model.Sampling)
    asked = given.prompt or given.label
    n = given.n if given.n is not None else 8 * len(asked) or 64
    knobs = config.knobs_of(given)
    to = Path(given.to or checkpoint.folder_of(argv[0]) / "samples.png")
    if to.suffix and to.suffix.lower() != ".png":
        raise LimnerError(f"Cannot write {to}: name a .png for one sheet, or a folder for one file an image.")
    if given.progress_to and not given.progress_to.lower().endswith(".gif"):
        raise LimnerError(f"Cannot write {given.progress_to}: name a .gif for --progress-to.")
    if not to.suffix:
        folder.saved(to)  # what cannot be written there is said before the drawing
    request = Request(**{f.name: getattr(given, f.name) for f in dataclasses.fields(Request)})
    condition = pipeline.condition(n, request)
    captions = captions_of(pipeline.spec, condition)
    film = Film(captions)
    with bar(f"drawing {n} images") as watch:
        on_canvas = film if given.progress_to else None
        images = pipeline.tensors(n, watch=watch, on_canvas=on_canvas, **vars(request), **knobs)
    if given.progress_to:
        film.save(Path(given.progress_to))
    if not to.suffix:
        folder.save(images, to, range(given.seed, given.seed + n), condition, pipeline.spec)
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        (to_pil(images[0]) if n == 1 else grid(images, captions)).save(to)
    say(f"{n} images in {to}")
    return 0
