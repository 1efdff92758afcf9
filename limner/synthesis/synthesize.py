"""A folder of synthetic images to train on: labelled or captioned, filtered, and with its provenance.

The n images are places in a queue, each with a label or caption. Seeds are tried one after another, each for the
first place in the queue; a refused image's place goes to its end. So which seed fills which place depends on the
settings alone, and the seeds that were kept are all that an unfinished folder needs to be gone on with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from limner import checkpoint
from limner.config import to_json
from limner.core import Condition, Generates, ImageSpec, LimnerError
from limner.data import open_like
from limner.evaluation.evaluate import as_saved, open_real
from limner.inference.pipeline import Pipeline, condition_for, generate
from limner.progress import bar
from limner.synthesis import folder
from limner.synthesis.filters import REASONS, Filter, alike, confident, sieve, unseen
from limner.version import __version__

PATIENCE = 4000  # images in a row of which at least one in a hundred must pass the filters


@dataclass(frozen=True)
class Asked:
    """What the images are to show, taken in turn; either may be empty."""

    labels: Sequence[str] = ()
    texts: Sequence[str] = ()
    source: str = ""  # where the texts are from, and the data's fingerprint
    fingerprint: str = ""

    def condition(self, places: Sequence[int], spec: ImageSpec) -> Condition:
        """The condition of the images at some places."""
        label = text = None
        if self.labels:
            label = torch.tensor([spec.classes.index(self.labels[p % len(self.labels)]) for p in places])
        if self.texts:
            text = [self.texts[p % len(self.texts)] for p in places]
        return Condition(len(places), label=label, text=text)

    def about(self) -> dict[str, Any]:
        """What tells two askings apart, short enough to be kept."""
        if self.source:
            return {"captions_from": self.source, "fingerprint": self.fingerprint}
        return {"labels": list(self.labels), "prompts": list(self.texts)}


def synthesize(
    run: str | Path,
    to: str | Path,
    n: int = 10_000,
    *,
    labels: Sequence[str] = (),
    prompts: Sequence[str] = (),
    prompts_from: str = "",
    like: str = "",
    new: str = "",
    classifier: str = "",
    confidence: float = 0.9,
    features: str = "random",
    weights: str = "",
    seed: int = 0,
    batch: int = 64,
    device: str = "auto",
    quiet: bool = False,
    **knobs: Any,
) -> dict[str, Any]:
    """Fill the folder ``to`` with ``n`` images of a run, or go on with filling it; returns its provenance.

    ``knobs`` are the fields of the family's Sampling. Raises LimnerError for what the person can mend, and when
    hardly any image passes the filters; what was kept until then, or until Ctrl-C, stays and can be gone on with.
    """
    pipeline, to = Pipeline(run, device), Path(to)
    model, spec = pipeline.model, pipeline.spec
    if not isinstance(model, Generates):
        raise LimnerError(f"The family {pipeline.loaded.run.family} draws no images.")
    if n < 1:
        raise LimnerError(f"Cannot make {n} images: ask for at least one.")
    sampling = pipeline.sampling(knobs)
    asked = find_asked(pipeline, labels, prompts, prompts_from, sampling, quiet)
    options = pipeline.loaded.run.data
    filters: list[Filter] = []
    if classifier:
        filters.append(confident(classifier, asked.labels, confidence, device))
    if like:
        filters.append(alike(open_real([like], spec, options, not quiet), like, features, weights, quiet))
    if new:
        filters.append(unseen(open_real([new], spec, options, not quiet), new, features, weights, quiet))
    settings = {
        "digest": pipeline.loaded.header["digest"], "n": n, "seed": seed, "asked": asked.about(),
        "sampling": to_json(model.Sampling(**knobs)), "filters": {f.name: f.about for f in filters},
    }  # fmt: skip
    provenance = {
        "made_by": "limner synthesize", "run": str(run), "family": pipeline.loaded.run.family,
        "images_seen": pipeline.loaded.header["seen"], "settings": settings,
        "versions": {"limner": __version__, "torch": torch.__version__},
        "drawn": 0, "kept": 0, "refused": {f.name: 0 for f in filters},
    }  # fmt: skip
    with checkpoint.lock(to):
        return _fill(pipeline, to, provenance, asked, filters, sampling, batch, quiet)


def _fill(
    pipeline: Pipeline, to: Path, provenance: dict[str, Any], asked: Asked, filters: Sequence[Filter],
    sampling: Any, batch: int, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    n, seed = provenance["settings"]["n"], provenance["settings"]["seed"]
    kept = folder.begin(to, provenance)
    queue = deque(range(n))
    for tried in range(seed, seed + provenance["drawn"]):
        place = queue.popleft()
        if tried not in kept:
            queue.append(place)
    model, spec = pipeline.model, pipeline.spec
    recent: deque[bool] = deque(maxlen=PATIENCE)
    with bar(f"making {n:,} images", quiet) as watch:
        watch(1 - len(queue) / n)
        while queue:
            places = [queue.popleft() for _ in range(min(batch, len(queue)))]
            first = seed + provenance["drawn"]
            seeds = range(first, first + len(places))
            condition = asked.condition(places, spec)
            within = partial(_advance, watch, provenance["kept"], len(places), n) if not filters else None
            images = generate(
                model, condition.to(model.device), seeds, sampling, len(places), within, pipeline.precision
            )
            names = None if condition.label is None else [spec.classes[i] for i in condition.label.tolist()]
            good = sieve(as_saved(images), names, filters, provenance["refused"])
            chosen = np.flatnonzero(good).tolist()
            provenance["drawn"] += len(places)
            provenance["kept"] += len(chosen)
            folder.add(to, provenance, images, chosen, seeds, condition, spec)
            queue.extend(place for place, passed in zip(places, good, strict=True) if not passed)
            recent.extend(good.tolist())
            watch(provenance["kept"] / n)
            if queue and len(recent) == PATIENCE and sum(recent) < PATIENCE / 100:
                refused = ", ".join(f"{f.name} {provenance['refused'][f.name]:,}" for f in filters)
                raise LimnerError(
                    f"Of the last {PATIENCE:,} images only {sum(recent)} passed the filters (left out in all: "
                    f"{refused}): loosen them or train the run longer; {to} holds {provenance['kept']:,} of {n:,}."
                )
    return provenance


def _advance(watch: Callable[[float], None], before: int, count: int, n: int, share: float) -> None:
    watch((before + share * count) / n)


def report(provenance: Mapping[str, Any], to: str | Path) -> list[str]:
    """Sentences on what the folder holds and what the filters left out of it."""
    told = [f"{provenance['kept']:,} images in {to}, from {provenance['drawn']:,} seeds."]
    for name, count in provenance["refused"].items():
        told.append(f"--{name} left out {count:,} of {provenance['drawn']:,} images: {REASONS[name]}.")
    return told


# What to ask for ----------------------------------------------------------------------------------------


def find_asked(
    pipeline: Pipeline, labels: Sequence[str], prompts: Sequence[str], prompts_from: str, sampling: Any,
    quiet: bool = False,
) -> Asked:  # fmt: skip
    """The labels and texts to take in turn. Raises LimnerError for what the run does not follow."""
    model, spec, run = pipeline.model, pipeline.spec, pipeline.loaded.run
    condition_for(model, 1, prompts or ([""] if prompts_from else []), labels)
    if prompts_from and (prompts or labels):
        raise LimnerError("--prompts-from stands alone: give it, or --prompt and --label.")
    reads_text = "text" in model.follows and heeds(pipeline, sampling, "text")
    reads_label = "label" in model.follows and heeds(pipeline, sampling, "label")
    for given, heeded, name in (
        (prompts or prompts_from, reads_text, "captions"),
        (labels or ("label" in model.follows and not reads_text), reads_label, "labels"),
    ):
        if given and not heeded:
            raise LimnerError(
                f"This run draws the same whatever {name} it is given, so they would say nothing of the images: "
                f"use a run that was trained on {name}."
            )
    if labels or prompts:
        return Asked(labels, prompts)
    if not reads_text:
        return Asked(spec.classes if reads_label else ())
    try:
        if prompts_from:
            data = open_like(prompts_from, spec, run.data, not quiet, captions=True)
        else:
            data = open_real(run.sources, spec, run.data, not quiet).training
    except LimnerError as mistake:
        if prompts_from:
            raise
        raise LimnerError(
            f"The images that the run learnt from cannot be opened ({mistake}): say what to show with --prompt "
            f"or --prompts-from."
        ) from None
    source = prompts_from or " ".join(run.sources)
    rows = [int(i) for i in data.order(0, len(data), 0) if data.captions and data.captions[i]]
    if data.captions is None or not rows:
        raise LimnerError(f"{source} has no captions: name a source that has some with --prompts-from.")
    known: list[str] = []  # the class of the image whose caption is taken
    if data.labels is not None and "label" in model.follows and set(data.spec.classes) <= set(spec.classes):
        known = [data.spec.classes[data.labels[i]] for i in rows]
    return Asked(known, [data.captions[i] for i in rows], source, data.fingerprint)


def heeds(pipeline: Pipeline, sampling: Any, what: Literal["label", "text"]) -> bool:
    """Whether two labels, or two texts, give two pictures of one seed. Where they do not, labels would be lies."""
    classes = pipeline.spec.classes[:2]
    if what == "label" and len(classes) < 2:
        return True
    asked = Asked(labels=classes) if what == "label" else Asked(texts=("one", "another"))
    condition = asked.condition([0, 1], pipeline.spec).to(pipeline.model.device)
    one, other = generate(pipeline.model, condition, [0, 0], sampling, precision=pipeline.precision)
    return not torch.allclose(one, other, rtol=0, atol=1e-5)
