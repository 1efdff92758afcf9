"""A folder of synthetic images to train on: labelled or captioned, filtered, and with its provenance.

A folder's files::

    DIR/000000.png ...     the images, each named by its seed
    DIR/metadata.jsonl     a line for each: file_name, seed, label and text as far as they were asked for
    DIR/provenance.json    run, settings, versions, and how many images each filter refused

The n images are places in a queue, each with a label or caption. Seeds are tried one after another, each for the
first place in the queue; a refused image's place goes to its end. So which seed fills which place depends on the
settings alone, and the seeds that were kept are all that an unfinished folder needs to be gone on with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limner import __version__, checkpoint
from limner.config import to_json
from limner.core import Classifies, Condition, DataOptions, Generates, ImageSpec, LimnerError, Model, nearest
from limner.data import Data, open_data, to_pil
from limner.evaluate import LEAST, Real, as_saved, batches, find_features, open_real
from limner.metrics import neighbours
from limner.metrics.features import resize, with_channels
from limner.sample import Painter, bar, condition_for, draw, metadata_line

NEIGHBOUR = 3  # a real image's ball reaches to its third neighbour (Kynkaanniemi 2019)
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


@dataclass(frozen=True)
class Filter:
    """A reason to leave an image out."""

    name: str
    about: dict[str, Any]  # for the provenance: two filters that decide alike say the same
    keep: Callable[[Tensor, list[str] | None], Tensor]  # [B, C, H, W] in [-1, 1], labels -> [B] bool


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
    painter, to = Painter(run, device), Path(to)
    model, spec = painter.model, painter.spec
    if not isinstance(model, Generates):
        raise LimnerError(f"The family {painter.loaded.run.family} draws no images.")
    if n < 1:
        raise LimnerError(f"Cannot make {n} images: ask for at least one.")
    known = {f.name for f in dataclasses.fields(model.Sampling)}
    for name in knobs.keys() - known:
        raise LimnerError(f"This family has no sampling knob {name!r}.{nearest(name, known)}")
    sampling = model.Sampling(**knobs)
    asked = find_asked(painter, labels, prompts, prompts_from, sampling, quiet)
    options = painter.loaded.run.data
    filters: list[Filter] = []
    if classifier:
        filters.append(confident(classifier, asked.labels, confidence, device))
    if like:
        filters.append(alike(open_real([like], spec, options, not quiet), like, features, weights, quiet))
    if new:
        filters.append(unseen(open_real([new], spec, options, not quiet), new, features, weights, quiet))
    settings = {
        "digest": painter.loaded.header["digest"], "n": n, "seed": seed, "asked": asked.about(),
        "sampling": to_json(sampling), "filters": {f.name: f.about for f in filters},
    }  # fmt: skip
    provenance = {
        "made_by": "limner synthesize", "run": str(run), "family": painter.loaded.run.family,
        "images_seen": painter.loaded.header["seen"], "settings": settings,
        "versions": {"limner": __version__, "torch": torch.__version__},
        "drawn": 0, "kept": 0, "refused": {f.name: 0 for f in filters},
    }  # fmt: skip
    with checkpoint.lock(to):
        return _fill(painter, to, provenance, asked, filters, sampling, batch, quiet)


def _fill(
    painter: Painter, to: Path, provenance: dict[str, Any], asked: Asked, filters: Sequence[Filter],
    sampling: Any, batch: int, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    n, seed = provenance["settings"]["n"], provenance["settings"]["seed"]
    kept = _begin(to, provenance)
    queue = deque(range(n))
    for tried in range(seed, seed + provenance["drawn"]):
        place = queue.popleft()
        if tried not in kept:
            queue.append(place)
    model, spec = painter.model, painter.spec
    recent: deque[bool] = deque(maxlen=PATIENCE)
    with bar(f"making {n:,} images", quiet) as watch:
        watch(1 - len(queue) / n)
        while queue:
            places = [queue.popleft() for _ in range(min(batch, len(queue)))]
            first = seed + provenance["drawn"]
            seeds = range(first, first + len(places))
            condition = asked.condition(places, spec)
            within = partial(_advance, watch, provenance["kept"], len(places), n) if not filters else None
            images = draw(
                model, condition.to(model.device), seeds, sampling, len(places), within, painter.precision
            )
            names = None if condition.label is None else [spec.classes[i] for i in condition.label.tolist()]
            good = _pass(as_saved(images), names, filters, provenance["refused"])
            chosen = np.flatnonzero(good).tolist()
            provenance["drawn"] += len(places)
            provenance["kept"] += len(chosen)
            _add(to, provenance, images, chosen, seeds, condition, spec)
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


def _pass(
    images: Tensor, labels: list[str] | None, filters: Sequence[Filter], refused: dict[str, int]
) -> np.ndarray:
    """[B] which images every filter keeps; each is counted for the first that refuses it."""
    good = np.ones(len(images), bool)
    for f in filters:
        rows = np.flatnonzero(good)
        if len(rows) == 0:
            break
        keep = f.keep(images[rows], None if labels is None else [labels[i] for i in rows]).cpu().numpy()
        good[rows[~keep]] = False
        refused[f.name] += int((~keep).sum())
    return good


def report(provenance: Mapping[str, Any], to: str | Path) -> list[str]:
    """Sentences on what the folder holds and what the filters left out of it."""
    told = [f"{provenance['kept']:,} images in {to}, from {provenance['drawn']:,} seeds."]
    for name, count in provenance["refused"].items():
        told.append(f"--{name} left out {count:,} of {provenance['drawn']:,} images: {REASONS[name]}.")
    return told


# What to ask for ----------------------------------------------------------------------------------------


def find_asked(
    painter: Painter, labels: Sequence[str], prompts: Sequence[str], prompts_from: str, sampling: Any,
    quiet: bool = False,
) -> Asked:  # fmt: skip
    """The labels and texts to take in turn. Raises LimnerError for what the run does not read or heed."""
    model, spec, run = painter.model, painter.spec, painter.loaded.run
    condition_for(model, 1, prompts or ([""] if prompts_from else []), labels)
    if prompts_from and (prompts or labels):
        raise LimnerError("--prompts-from stands alone: give it, or --prompt and --label.")
    reads_text = "text" in model.reads and spec.captions and heeds(painter, sampling, "text")
    reads_label = "label" in model.reads and bool(spec.classes) and heeds(painter, sampling, "label")
    for given, heeded, name in (
        (prompts or prompts_from, reads_text, "captions"),
        (labels or (spec.classes and "label" in model.reads and not reads_text), reads_label, "labels"),
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
        data = _captions(prompts_from, run.data, spec, quiet) if prompts_from else None
        data = data or open_real(run.sources, spec, run.data, not quiet).training
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
    if data.labels is not None and "label" in model.reads and set(data.spec.classes) <= set(spec.classes):
        known = [data.spec.classes[data.labels[i]] for i in rows]
    return Asked(known, [data.captions[i] for i in rows], source, data.fingerprint)


def _captions(source: str, options: DataOptions, spec: ImageSpec, quiet: bool) -> Data:
    options = dataclasses.replace(options, channels=spec.channels, captions=True)  # type: ignore[arg-type]
    return open_data(source, size=(spec.height, spec.width), options=options, progress=not quiet)


def heeds(painter: Painter, sampling: Any, what: Literal["label", "text"]) -> bool:
    """Whether two labels, or two texts, give two pictures of one seed. Where they do not, labels would be lies."""
    classes = painter.spec.classes[:2]
    if what == "label" and len(classes) < 2:
        return True
    asked = Asked(labels=classes) if what == "label" else Asked(texts=("one", "another"))
    condition = asked.condition([0, 1], painter.spec).to(painter.model.device)
    one, other = draw(painter.model, condition, [0, 0], sampling, precision=painter.precision)
    return not torch.allclose(one, other, rtol=0, atol=1e-5)


# Filters ------------------------------------------------------------------------------------------------

REASONS = {
    "classifier": "the classifier did not take them for what was asked",
    "like": "they look like no real training image",
    "new": "they are nearer to a training image than held-out images are",
}


def alike(real: Real, source: str, features: str, weights: str = "", quiet: bool = False) -> Filter:
    """Keep what lies in the ball of some training image (the precision of Kynkaanniemi 2019, for each image)."""
    by = find_features(features, weights)
    if len(real.training) <= NEIGHBOUR:
        raise LimnerError(f"{source} has too few images for --like: give at least {LEAST}.")
    points = _features(by.of, real.training, "describing real images", quiet)
    reach = neighbours.radii(points, NEIGHBOUR)

    def keep(images: Tensor, labels: list[str] | None) -> Tensor:
        return neighbours.inside(by.of([images]), points, reach)

    about: dict[str, Any] = {
        "source": source,
        "fingerprint": real.training.fingerprint,
        "images": len(real.training),
    }
    about |= {"features": by.name, "hash": by.hash, "k": NEIGHBOUR}
    return Filter("like", about, keep)


def unseen(real: Real, source: str, features: str, weights: str = "", quiet: bool = False) -> Filter:
    """Leave out what lies nearer to a training image than 95% of the held-out images do (see ``memorised``)."""
    by = find_features(features, weights)
    if len(real.held_out) < LEAST:
        raise LimnerError(
            f"--new needs at least {LEAST} held-out images to know how near is too near, and {source} has "
            f"{len(real.held_out)}: give a larger source, or train the run with a larger --data.holdout."
        )
    points = _features(by.of, real.training, "describing real images", quiet)
    usual = neighbours.usual_distance(points, by.of(batches(real.held_out)))

    def keep(images: Tensor, labels: list[str] | None) -> Tensor:
        return ~neighbours.copies(by.of([images]), points, usual)

    about: dict[str, Any] = {
        "source": source,
        "fingerprint": real.training.fingerprint,
        "images": len(real.training),
    }
    about |= {"features": by.name, "hash": by.hash, "usual": float(usual)}
    return Filter("new", about, keep)


def _features(of: Callable[..., Tensor], data: Data, words: str, quiet: bool) -> Tensor:
    with bar(words, quiet) as watch:
        return of(batches(data), lambda done: watch(done / len(data)))


def confident(run: str, asked: Iterable[str], confidence: float, device: str = "auto") -> Filter:
    """Keep what another run gives at least so much probability of being what was asked for, classes by name."""
    if not 0 < confidence <= 1:
        raise LimnerError(f"--confidence is a probability above 0 and up to 1, not {confidence:g}.")
    painter = Painter(run, device)
    model, spec = painter.model, painter.spec
    if not isinstance(model, Classifies):
        raise LimnerError(
            f"{run} is a run of {painter.loaded.run.family}, which does not tell classes apart: name another "
            f"--classifier."
        )
    asked = set(asked)
    if not asked:
        raise LimnerError("--classifier needs labels to check, and these images are asked for without any.")
    for name in sorted(asked - set(spec.classes)):
        raise LimnerError(
            f"The classifier {run} knows no class {name!r}.{nearest(name, spec.classes)} It knows "
            f"{', '.join(spec.classes[:12])}."
        )

    def keep(images: Tensor, labels: list[str] | None) -> Tensor:
        probability = probabilities(model, images)  # [B, K]
        index = torch.tensor([spec.classes.index(name) for name in labels or ()])
        return probability.gather(1, index[:, None])[:, 0] >= confidence

    about = {"digest": painter.loaded.header["digest"], "confidence": confidence}
    return Filter("classifier", about, keep)


def probabilities(model: Model, images: Tensor) -> Tensor:
    """[B, C, H, W] in [-1, 1] of any size and channels -> float64 [B, K] on the CPU."""
    assert isinstance(model, Classifies)
    images = resize(with_channels(images, model.spec.channels), model.spec.height, model.spec.width)
    with torch.inference_mode():
        return model.classify(images.to(model.device)).double().softmax(1).cpu()


# The folder ---------------------------------------------------------------------------------------------


def _begin(to: Path, provenance: dict[str, Any]) -> set[int]:
    """The seeds that the folder holds; ``provenance`` takes over how far it came.

    Raises LimnerError for a folder that holds anything else.
    """
    about = to / "provenance.json"
    if not about.exists():
        if any(path.name != ".lock" for path in to.iterdir()):
            raise LimnerError(f"{to} holds other files: name an empty or a new folder with --to.")
        _replace(about, json.dumps(provenance, indent=2) + "\n")
        return set()
    old = _read(about)
    now, then = provenance["settings"], old["settings"]
    if now != then:
        differ = ", ".join(sorted(name for name in now if now[name] != then.get(name)))
        raise LimnerError(
            f"{to} holds images made with other settings ({differ}): name another folder with --to."
        )
    for name in ("drawn", "kept", "refused"):
        provenance[name] = old[name]
    seed, end = now["seed"], now["seed"] + old["drawn"]
    listed = to / "metadata.jsonl"
    lines = listed.read_text("utf-8").splitlines(keepends=True) if listed.exists() else []
    whole: list[str] = []
    kept: set[int] = set()
    for line in lines:  # what was listed last may be cut short, or the count not be written yet: drawn again
        with contextlib.suppress(ValueError, KeyError):
            row = json.loads(line)
            if line.endswith("\n") and seed <= row["seed"] < end:
                if not (to / row["file_name"]).exists():
                    raise LimnerError(
                        f"{row['file_name']} is listed in {listed} but is not there: put it back, or name "
                        f"another folder with --to."
                    )
                whole.append(line)
                kept.add(row["seed"])
    if len(kept) != old["kept"]:
        raise LimnerError(
            f"{listed} lists {len(kept)} images where {old['kept']} were made: put its lines back, or name "
            f"another folder with --to."
        )
    if whole != lines:
        _replace(listed, "".join(whole))
    for path in to.iterdir():  # images that were never listed
        found = re.fullmatch(r"\.?(-?\d{5,})\.png", path.name)
        if found and int(found[1]) not in kept:
            path.unlink()
    return kept


def _read(about: Path) -> dict[str, Any]:
    try:
        old = json.loads(about.read_text("utf-8"))
        if old["made_by"] == "limner synthesize" and isinstance(old["settings"], dict):
            return old
    except (ValueError, KeyError, TypeError):
        pass
    raise LimnerError(f"{about} is not what limner synthesize writes: name another folder with --to.")


def _add(
    to: Path, provenance: dict[str, Any], images: Tensor, chosen: Sequence[int], seeds: Sequence[int],
    condition: Condition, spec: ImageSpec,
) -> None:  # fmt: skip
    """Put the chosen images of a batch into the folder: the files first, then their lines, then the count.

    Files bear hidden names, which nobody reads, until their lines are about to be written.
    """
    lines, names = [], [f"{seeds[i]:06d}.png" for i in chosen]
    for i, name in zip(chosen, names, strict=True):
        with open(to / f".{name}", "wb") as file:
            to_pil(images[i]).save(file, "PNG")
            file.flush()
            os.fsync(file.fileno())
        lines.append(metadata_line(name, seeds[i], condition, i, spec))
    with unbroken():
        for name in names:
            os.replace(to / f".{name}", to / name)
        with open(to / "metadata.jsonl", "a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        _replace(to / "provenance.json", json.dumps(provenance, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until this is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in caught:
            signal.raise_signal(late)
