"""A folder of drawn images, as `limner sample` writes it: batch by batch, and resumed where it was stopped."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner import checkpoint
from limner.core import Condition
from limner.fields import to_json
from limner.inference.options import ClipOptions, SampleOptions
from limner.inference.pipeline import Pipeline, captions_of
from limner.inference.rank import Ranker
from limner.pictures.film import Film
from limner.progress import Watch, bar, ignore
from limner.settings import __version__
from limner.synthesis import folder
from limner.synthesis.folder import ImageBatch, Provenance


@dataclass(frozen=True)
class Request:
    """Images to draw from a run."""

    pipeline: Pipeline
    condition: Condition
    options: SampleOptions
    sampling: Mapping[str, Any]  # fields of the family's Sampling
    clips: ClipOptions | None = None  # of a run that draws clips: how they are written, with the rate

    def batches(self, start: int, watch: Watch, film: Film | None = None) -> Iterator[Tensor]:
        """The images from number ``start`` on."""
        options = {**vars(self.options), **self.sampling}
        return self.pipeline.batches(self.condition.size, start=start, watch=watch, on_canvas=film, **options)

    def provenance(self) -> Provenance:
        """All that decides which images these are, and none of them drawn yet."""
        model, header, options = self.pipeline.model, self.pipeline.loaded.header, self.options
        blend = self.condition.blend
        pictures = self.condition.image, self.condition.mask, blend.other.image if blend else None
        given = [x[0].contiguous() for x in pictures if x is not None]
        chosen_by: dict[str, Any] = {}
        if options.rank:
            by = Ranker(options.rank, model.device).digest
            chosen_by = {"rank": by, "candidates": options.candidates}
        clips = vars(self.clips) if self.clips else {}
        settings = to_json({
            "digest": self.pipeline.digest, "n": self.condition.size, "seed": options.seed,
            "between": options.between, "prompt": options.prompt, "label": options.label,
            "given": [hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in given],
            "sampling": self.pipeline.named_sampling(self.sampling),
        } | ({"blend": options.blend} if blend else {}) | chosen_by | clips)  # fmt: skip
        return Provenance(
            made_by=folder.SAMPLE, run=str(self.pipeline.loaded.path), family=model.family,
            images_seen=header["seen"], settings=settings,
            versions={"limner": __version__, "torch": torch.__version__}, refused={},
        )  # fmt: skip


def draw_folder(request: Request, to: Path, film_to: Path | None = None, quiet: bool = False) -> None:
    """Draw images into the folder ``to``, written batch by batch, and a film of the first batch.

    An earlier drawing there stays until this one is finished; this one is resumed where it was stopped. Raises
    LimnerError, also for a folder that holds anything else.
    """
    is_new, lock = not to.exists(), to / checkpoint.LOCK
    try:
        with checkpoint.lock(to, "--to"):
            try:
                place = folder.find_place(to, request.provenance())
                _fill(request, place, film_to, quiet)
                folder.finish(to, place)
            finally:
                if not folder.is_unfinished(to):
                    lock.unlink(missing_ok=True)
    finally:
        if is_new and to.is_dir() and {path.name for path in to.iterdir()} <= {lock.name}:
            with contextlib.suppress(OSError):  # nothing was drawn
                lock.unlink(missing_ok=True)
                to.rmdir()


def _fill(request: Request, place: Path, film_to: Path | None, quiet: bool) -> None:
    """Draw what the folder lacks."""
    spec, n, seed = request.pipeline.spec, request.condition.size, request.options.seed
    provenance, _ = folder.begin(place, request.provenance())
    at = provenance.drawn
    if request.options.rank:
        _fill_with_best(request, place, provenance, quiet)
        return
    film = Film(captions_of(spec, request.condition)) if film_to else None
    if film and film_to and at and not film_to.exists():  # the film's images are in the folder already
        next(request.batches(0, ignore, film))
        film.save(film_to)
    with bar(f"drawing {n} {spec.noun}s", quiet) as watch:
        for images in request.batches(at, watch, film) if at < n else ():
            if film and film_to and at == 0:
                film.save(film_to)
            rows = slice(at, at + len(images))
            at = rows.stop
            batch = ImageBatch(
                images, range(seed, seed + n)[rows], request.condition[rows], spec, clips=request.clips
            )
            provenance = replace(provenance, drawn=at, kept=at)
            folder.add(place, provenance, batch, range(len(images)))


def _fill_with_best(request: Request, place: Path, provenance: Provenance, quiet: bool) -> None:
    """Draw the candidates and keep the best, all at once, named by their seeds."""
    n, spec = request.condition.size, request.pipeline.spec
    if provenance.kept == n:
        return
    with bar("drawing candidates", quiet) as watch:
        options = {**vars(request.options), **request.sampling}
        best = request.pipeline.best(n, watch=watch, **options)
    seeds = [int(seed) for seed in best.seeds if not isinstance(seed, tuple)]
    batch = ImageBatch(best.images, seeds, best.condition, spec, best.scores)
    provenance = replace(provenance, drawn=best.drawn, kept=n, refused={"rank": best.drawn - n})
    folder.add(place, provenance, batch, range(n))
