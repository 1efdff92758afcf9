"""What synthetic images are worth as training data: the classification accuracy score (Ravuri and Vinyals 2019).

One and the same classifier learns from real images only, from synthetic ones only, and from both, seeing as many
images each time; all are tested on real images that neither they nor the generator learnt from.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import api, checkpoint, families, files
from limner.config import parse_budget
from limner.core import Classifies, Generates, LimnerError
from limner.data import Data, batches
from limner.evaluation.evaluate import BATCH, LEAST, Real, as_bytes, as_saved, open_real
from limner.inference.pipeline import Pipeline
from limner.inference.understand import probabilities
from limner.metrics.probes import wilson
from limner.pictures.grid import save_png
from limner.progress import bar
from limner.synthesis.synthesize import synthesize

KINDS = {"real": "real images", "synthetic": "synthetic images", "both": "both, half and half"}
FEWEST = 1000  # synthetic images, unless told


def as_training_data(
    run: str | Path,
    sources: Sequence[str],
    n: int | None = None,
    family: str = families.CLASSIFIER,
    budget: str = "60kimg",
    preset: str = "",
    repeats: int = 1,
    seed: int = 0,
    to: str | Path | None = None,
    quiet: bool = False,
    **knobs: Any,
) -> dict[str, Any]:
    """Train ``repeats`` classifiers of a family on real, synthetic and both, and test them on held-out real images.

    ``knobs`` say how the run draws.

    Writes the images and the classifiers into ``to``/training_data; a second call with the same settings goes on
    there. Raises LimnerError for what the person can mend.
    """
    pipeline = Pipeline(run)
    spec, options = pipeline.spec, pipeline.loaded.run.data
    kind = families.load(family)
    if not issubclass(kind, Classifies):
        raise LimnerError(
            f"{family} does not classify: name a family that does, such as {families.CLASSIFIER}."
        )
    if not isinstance(pipeline.model, Generates) or "label" not in pipeline.model.follows:
        raise LimnerError(
            f"{run} cannot be asked for a class, so its images have no labels to learn: name a run that was "
            f"trained on labelled images."
        )
    if repeats < 1:
        raise LimnerError(f"Cannot train {repeats} classifiers of each kind: ask for at least one.")
    parse_budget(budget, 1)
    real = open_real(sources, spec, options, not quiet)
    check_classes(real, spec.classes, sources)
    test, left_out, checked = untouched(pipeline, real, quiet)
    if len(test) < LEAST:
        raise LimnerError(
            f"{len(test)} held-out images are too few to test a classifier on: give a source so large that its "
            f"held-out part ({options.holdout:.0%}) has at least {LEAST}."
        )
    count = n or max(FEWEST, len(real.training))
    length = parse_budget(budget, len(real.training))
    if length.unit == "images":  # epochs are of the real images, so that all three see as many
        budget = f"{math.ceil(length.amount)}img"
    folder = Path(to or checkpoint.folder_of(run) / "evaluation")
    folder = folder / "training_data"
    asked = {
        "run": pipeline.loaded.header["digest"], "sources": list(sources), "fingerprint": real.training.fingerprint,
        "real": len(real.training), "n": count, "seed": seed, "family": family, "preset": preset, "budget": budget,
        **({"knobs": {name: str(value) for name, value in knobs.items()}} if knobs else {}),
    }  # fmt: skip
    _begin(folder, asked)
    _write(real.training, folder / "real", quiet)
    # Asked for the source's own classes, of which the run may know more.
    classes = real.training.spec.classes
    synthesize(run, folder / "synthetic", count, labels=classes, seed=seed, quiet=quiet, **knobs)

    shares = {"real": (1, 0), "synthetic": (0, 1), "both": _even(len(real.training), count)}
    right: dict[str, list[Tensor]] = {name: [] for name in KINDS}
    for repeat in range(repeats):
        for name, (reals, synthetics) in shares.items():
            out = folder / "classifiers" / f"{name}-{seed + repeat}"
            parts = [str(folder / "real")] * reals + [str(folder / "synthetic")] * synthetics
            if not _done(out, budget):
                result = api.train(
                    family, parts, out, preset=preset or None, budget=budget, size=(spec.height, spec.width),
                    seed=seed + repeat, resume=checkpoint.exists(out), quiet=quiet,
                    data={"channels": spec.channels, "captions": False, "holdout": 0.0, "flip": options.flip,
                          "cache": options.cache},
                )  # fmt: skip
                if result.stopped:
                    raise KeyboardInterrupt
            right[name].append(hits(out, test))
    told: dict[str, Any] = {
        "classifier": family, "preset": preset or None, "budget": budget, "repeats": repeats,
        "n_test": len(test), "n_real": len(real.training), "n_synthetic": count,
        "left_out": left_out, "checked": checked,
        "real_share_of_both": shares["both"][0] * len(real.training)
        / (shares["both"][0] * len(real.training) + shares["both"][1] * count),
    }  # fmt: skip
    for name, found in right.items():
        runs = [float(hit.double().mean()) for hit in found]
        low, high = wilson(sum(runs) / repeats, len(test))
        told[name] = {"accuracy": sum(runs) / repeats, "low": low, "high": high, "runs": runs}
    told["difference"] = paired(torch.stack(right["both"]), torch.stack(right["real"]))
    told["verdict"] = verdict(told["difference"])
    told["said"] = sentence(told)
    return told


def check_classes(real: Real, known: Sequence[str], sources: Sequence[str]) -> None:
    """Raise LimnerError unless the real images have classes, all of which the run knows."""
    named = ", ".join(sources)
    if real.training.labels is None:
        raise LimnerError(f"{named} has no classes: give images sorted into folders, or with labels.")
    if strange := [name for name in real.training.spec.classes if name not in known]:
        raise LimnerError(
            f"The run knows no class {strange[0]!r} of {named}, only {', '.join(known[:12])}: name a source with "
            f"classes that it was trained on."
        )


def untouched(pipeline: Pipeline, real: Real, quiet: bool = False) -> tuple[Data, int, bool]:
    """The held-out images that nobody trains on: (those, how many were left out, whether that could be checked).

    Left out is what equals, pixel for pixel, an image that the classifiers or the generator train on. The
    generator's own sources cannot be checked where they cannot be opened.
    """
    seen, checked, run = _prints(real.training), True, pipeline.loaded.run
    try:
        seen |= _prints(open_real(run.sources, pipeline.spec, run.data, not quiet).training)
    except LimnerError:
        checked = False
    rows = [i for i, found in enumerate(_print_list(real.held_out)) if found not in seen]
    return real.held_out.part(np.array(rows, np.int64)), len(real.held_out) - len(rows), checked


def _prints(data: Data) -> set[bytes]:
    return set(_print_list(data))


def _print_list(data: Data) -> list[bytes]:
    """A hash of each image as 8 bits hold it."""
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for images in batches(data)
        for image in as_bytes(images)
    ]


def hits(classifier: Path, test: Data) -> Tensor:
    """[N] whether a trained classifier names each image's class; classes go by their names."""
    pipeline = Pipeline(classifier)
    assert test.labels is not None
    known = {name: i for i, name in enumerate(pipeline.spec.classes)}
    index = torch.tensor([known.get(name, -1) for name in test.spec.classes])
    truth = index[torch.from_numpy(test.labels)]
    return probabilities(pipeline, map(as_saved, batches(test))).argmax(1) == truth


def paired(one: Tensor, other: Tensor, z: float = 1.96) -> dict[str, float]:
    """How much more often ``one`` is right than ``other`` [R, N] bool on the same images, with a 95% interval.

    The normal interval of the differences with half an image added to each way of being right or wrong (Agresti
    and Min 2005); where there are several repeats their own spread is added.
    """
    each = (one.double() - other.double()).mean(0)  # [N]
    n = len(each)
    middle = float(each.sum()) / (n + 2)
    variance = (float(each.square().sum()) + 1) / (n + 2) - middle**2
    error = variance / (n + 2)
    if len(one) > 1:
        error += float((one.double() - other.double()).mean(1).var()) / len(one)
    half = z * math.sqrt(error)
    return {"value": float(each.mean()), "low": middle - half, "high": middle + half}


def verdict(difference: dict[str, float]) -> str:
    """'helps', 'hurts' or 'unclear': which side of zero the interval lies on."""
    return "helps" if difference["low"] > 0 else "hurts" if difference["high"] < 0 else "unclear"


def sentence(told: dict[str, Any]) -> str:
    """Whether the synthetic images help, in words."""
    d = told["difference"]
    change = f"{told['real']['accuracy']:.1%} -> {told['both']['accuracy']:.1%}"
    points = f"{100 * d['value']:+.1f} points, 95% interval {100 * d['low']:+.1f} to {100 * d['high']:+.1f}"
    tail = f"{change} of {told['n_test']:,} held-out images ({points})."
    if told["verdict"] == "helps":
        return f"Adding synthetic images helps: {tail}"
    if told["verdict"] == "hurts":
        return f"Adding synthetic images does not help, it hurts: {tail}"
    return f"With and without synthetic images cannot be told apart: {tail}"


def rows(told: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Lines of a table: trained on, images, accuracy, 95% interval, lowest to highest over repeats."""
    counts = {"real": told["n_real"], "synthetic": told["n_synthetic"]}
    counts["both"] = counts["real"] + counts["synthetic"]
    table = []
    for name, words in KINDS.items():
        v = told[name]
        spread = f"{min(v['runs']):.1%} to {max(v['runs']):.1%}" if len(v["runs"]) > 1 else ""
        accuracy, interval = f"{v['accuracy']:.1%}", f"{v['low']:.1%} to {v['high']:.1%}"
        table.append((words, f"{counts[name]:,}", accuracy, interval, spread))
    return table


def keep(told: dict[str, Any], folder: str | Path) -> None:
    """Add what was found to the evaluation.json of a folder."""
    path = Path(folder) / "evaluation.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    files.write_json(path, found | {"training_data": told})


# The folder ---------------------------------------------------------------------------------------------


def _begin(folder: Path, asked: dict[str, Any]) -> None:
    """Make the folder ready: what another call left there under other settings goes, and nothing else."""
    about = folder / "asked.json"
    parts = [folder / name for name in ("real", "synthetic", "classifiers")]
    if not about.exists():
        for part in parts:
            if part.exists():
                raise LimnerError(
                    f"{part} was not made by --as-training-data: move it, or name another --to."
                )
    elif json.loads(about.read_text("utf-8")) != asked:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(about, asked)


def _write(data: Data, folder: Path, quiet: bool) -> None:
    """The images as PNG, with their labels in metadata.jsonl, which is written last."""
    if (folder / "metadata.jsonl").exists():
        return
    folder.mkdir(exist_ok=True)
    assert data.labels is not None
    lines = []
    with bar("writing real images", quiet) as watch:
        for at in range(0, len(data), BATCH):
            part = np.arange(at, min(at + BATCH, len(data)))
            for i, image in zip(part.tolist(), data.batch(part).image, strict=True):
                name = f"{i:06d}.png"
                save_png(image, folder / name, data.spec.bits)
                label = data.spec.classes[data.labels[i]]
                lines.append(json.dumps({"file_name": name, "label": label}, ensure_ascii=False) + "\n")
            watch(len(lines) / len(data))
    files.write_text(folder / "metadata.jsonl", "".join(lines))


def _done(out: Path, budget: str) -> bool:
    """Whether a classifier has had its whole training."""
    if not checkpoint.exists(out):
        return False
    header = checkpoint.read_model(out)[0]
    return parse_budget(budget, 1).spent(header.get("seconds", 0.0), header["seen"]) >= 1


def _even(reals: int, synthetics: int) -> tuple[int, int]:
    """How often to name each folder so that each makes about half of what is seen.

    A folder named twice is read twice: the training knows nothing of it, and no image is copied on disk.
    """
    ratio = Fraction(max(reals, synthetics), min(reals, synthetics)).limit_denominator(4)
    more, less = ratio.denominator, ratio.numerator  # how often the larger, and the smaller one
    return (more, less) if reals >= synthetics else (less, more)
