"""A folder of synthetic images to train on: labelled or captioned, filtered, and with its provenance.

The n images are places in a queue, each with a label or caption. Seeds are tried one after another, each for the
first place in the queue; the place of a refused image goes to the end. So which seed fills which place depends on
the settings alone, and the seeds that were kept are all that is needed to resume an unfinished folder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from limner import checkpoint
from limner.core import Condition, Generates, LimnerError, Model
from limner.data import finder, open_like
from limner.evaluation.real import as_saved, open_real
from limner.fields import to_json
from limner.inference.pipeline import Pipeline, condition_for, generate
from limner.inference.prompts import warn_if_cut, warn_of_prompts
from limner.progress import Watch, bar, ignore, part
from limner.settings import __version__
from limner.synthesis import folder
from limner.synthesis.filters import REASONS, Filter, apply_filters, open_filters
from limner.synthesis.folder import ImageBatch, Provenance
from limner.synthesis.options import SynthesizeOptions

PATIENCE = 4000  # images in a row of which at least one in a hundred must pass the filters


@dataclass(frozen=True)
class Conditions:
    """The labels and texts of the images, taken in turn; either may be empty."""

    labels: Sequence[str] = ()
    texts: Sequence[str] = ()
    source: str = ""  # where the texts are from, and the data's fingerprint
    fingerprint: str = ""

    def at(self, places: Sequence[int], model: Model) -> Condition:
        """The condition of the images at some places."""
        texts, labels = ([v[p % len(v)] for p in places if v] for v in (self.texts, self.labels))
        return condition_for(model, len(places), texts, labels)

    def summary(self) -> dict[str, Any]:
        """What identifies them, short enough for the provenance."""
        if self.source:
            return {"captions_from": self.source, "fingerprint": self.fingerprint}
        return {"labels": list(self.labels), "prompts": list(self.texts)}


@dataclass(frozen=True)
class Job:
    """How the images of a folder are drawn and chosen."""

    pipeline: Pipeline
    sampling: Any  # the family's Sampling, with the runs that it names
    conditions: Conditions
    filters: Sequence[Filter]
    batch_size: int

    def draw(self, places: Sequence[int], first: int, watch: Watch) -> ImageBatch:
        """Images for some places, with seeds from ``first`` on."""
        model, seeds = self.pipeline.model, range(first, first + len(places))
        condition, precision = self.conditions.at(places, model), self.pipeline.precision
        images = generate(model, condition, seeds, self.sampling, len(seeds), watch, precision)
        return ImageBatch(images, seeds, condition, model.spec)


def synthesize(
    run: str | Path, to: str | Path, options: SynthesizeOptions = SynthesizeOptions(), *, device: str = "auto",
    quiet: bool = False, **sampling: Any,
) -> Provenance:  # fmt: skip
    """Fill the folder ``to`` with images of a run, or resume filling it.

    ``sampling`` holds fields of the family's Sampling. Raises LimnerError, also where hardly any image passes the
    filters; images that were kept until then, or until Ctrl-C, stay, and the same call resumes.
    """
    to = Path(to)
    folder.refuse_unfit(to)
    pipeline = Pipeline(run, device)
    model, header = pipeline.model, pipeline.loaded.header
    if not isinstance(model, Generates):
        raise LimnerError(f"The family {model.family} draws no images.")
    if "given" in model.follows:
        raise LimnerError(
            f"{run} makes its images from given pictures: use limner sample {run} --image FILE."
        )
    opened = pipeline.sampling(sampling)
    conditions = find_conditions(pipeline, options, opened, quiet)
    filters = open_filters(pipeline, options, conditions.labels, device, quiet)
    settings = to_json({
        "digest": pipeline.digest, "n": options.n, "seed": options.seed, "asked": conditions.summary(),
        "sampling": pipeline.named_sampling(sampling), "filters": {f.name: f.settings for f in filters},
    })  # fmt: skip
    provenance = Provenance(
        run=str(run), family=model.family, images_seen=header["seen"], settings=settings,
        versions={"limner": __version__, "torch": torch.__version__}, refused={f.name: 0 for f in filters},
    )  # fmt: skip
    with checkpoint.lock(to, "--to"):
        return _fill(to, provenance, Job(pipeline, opened, conditions, filters, options.batch), quiet)


def _fill(to: Path, provenance: Provenance, job: Job, quiet: bool) -> Provenance:
    n, seed, filters = provenance.settings["n"], provenance.settings["seed"], job.filters
    provenance, kept = folder.begin(to, provenance)
    queue = deque(range(n))
    for tried in range(seed, seed + provenance.drawn):
        place = queue.popleft()
        if tried not in kept:
            queue.append(place)
    recent: deque[bool] = deque(maxlen=PATIENCE)
    with bar(f"making {n:,} images", quiet) as watch:
        watch(1 - len(queue) / n)
        while queue:
            places = [queue.popleft() for _ in range(min(job.batch_size, len(queue)))]
            watch_batch = ignore if filters else part(watch, provenance.kept / n, len(places) / n)
            batch = job.draw(places, seed + provenance.drawn, watch_batch)
            good, refused = apply_filters(as_saved(batch.images), batch.labels, filters)
            chosen = np.flatnonzero(good).tolist()
            provenance = replace(
                provenance, drawn=provenance.drawn + len(places), kept=provenance.kept + len(chosen),
                refused={name: count + refused[name] for name, count in provenance.refused.items()},
            )  # fmt: skip
            folder.add(to, provenance, batch, chosen)
            queue.extend(place for place, passed in zip(places, good, strict=True) if not passed)
            recent.extend(good.tolist())
            watch(provenance.kept / n)
            if queue and len(recent) == PATIENCE and sum(recent) < PATIENCE / 100:
                left_out = ", ".join(f"{name} {count:,}" for name, count in provenance.refused.items())
                raise LimnerError(
                    f"Of the last {PATIENCE:,} images only {sum(recent)} passed the filters (left out in all: "
                    f"{left_out}): loosen them or train the run longer; {to} holds {provenance.kept:,} of {n:,}."
                )
    return provenance


def report(provenance: Provenance, to: str | Path) -> list[str]:
    """Sentences on what the folder holds and what the filters left out of it."""
    sentences = [f"{provenance.kept:,} images in {to}, from {provenance.drawn:,} seeds."]
    for name, count in provenance.refused.items():
        sentences.append(f"--{name} left out {count:,} of {provenance.drawn:,} images: {REASONS[name]}.")
    return sentences


def find_conditions(
    pipeline: Pipeline, options: SynthesizeOptions, sampling: Any, quiet: bool = False
) -> Conditions:
    """The labels and texts to take in turn. Raises LimnerError for what the run does not follow."""
    model, labels, prompts = pipeline.model, options.label, options.prompt
    condition_for(model, 1, prompts or ([""] if options.prompts_from else []), labels)
    warn_of_prompts(model, prompts, pipeline.scripts)
    if options.prompts_from and (prompts or labels):
        raise LimnerError(
            "--prompts-from cannot be combined with --prompt or --label: give only one of them."
        )
    uses_text = responds_to(pipeline, sampling, "text")
    uses_label = responds_to(pipeline, sampling, "label")
    for wanted, used, name in (
        (prompts or options.prompts_from, uses_text, "captions"),
        (labels or ("label" in model.follows and not uses_text), uses_label, "labels"),
    ):
        if wanted and not used:
            raise LimnerError(
                f"This run draws the same images whatever {name} it is given, so the {name} would be wrong: "
                f"use a run that was trained on {name}."
            )
    if labels or prompts:
        return Conditions(labels, prompts)
    if not uses_text:
        return Conditions(pipeline.spec.classes if uses_label else ())
    return _captions(pipeline, options.prompts_from, quiet)


def _captions(pipeline: Pipeline, prompts_from: str, quiet: bool) -> Conditions:
    """The captions of a source, or of the run's own images, in a random order."""
    spec, run = pipeline.spec, pipeline.loaded.run
    if prompts_from:
        data = open_like(prompts_from, spec, run.data, not quiet, captions=True)
    else:
        try:
            data = open_real(run.sources, spec, run.data, not quiet).training
        except LimnerError as error:
            raise LimnerError(
                f"The images that the run was trained on cannot be opened ({error}): say what to show with --prompt "
                f"or --prompts-from."
            ) from None
    source = prompts_from or " ".join(run.sources)
    rows = [int(i) for i in data.order(0, len(data), 0) if data.captions and data.captions[i]]
    if data.captions is None or not rows:
        raise LimnerError(f"{source} has no captions: name a source that has some with --prompts-from.")
    labels: list[str] = []  # the class of the image that each caption is of
    follows_label = "label" in pipeline.model.follows
    if data.labels is not None and follows_label and min(map(finder(spec.classes), data.spec.classes)) >= 0:
        rows = [i for i in rows if data.labels[i] >= 0]
        labels = [data.spec.classes[data.labels[i]] for i in rows]
    texts = [data.captions[i] for i in rows]
    warn_if_cut(pipeline.model, texts)
    return Conditions(labels, texts, source, data.fingerprint)


def responds_to(pipeline: Pipeline, sampling: Any, what: Literal["label", "text"]) -> bool:
    """Whether two labels, or two texts, give two images of one seed. Where they do not, labels would be wrong."""
    if what not in pipeline.model.follows:
        return False
    classes = pipeline.spec.classes[:2]
    if what == "label" and len(classes) < 2:
        return True
    two = Conditions(labels=classes) if what == "label" else Conditions(texts=("one", "another"))
    condition = two.at([0, 1], pipeline.model)
    one, other = generate(pipeline.model, condition, [0, 0], sampling, precision=pipeline.precision)
    return not torch.allclose(one, other, rtol=0, atol=1e-5)
