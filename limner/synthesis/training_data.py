"""What synthetic images are worth as training data: the classification accuracy score (Ravuri and Vinyals 2019).

The same classifier is trained on real images only, on synthetic ones only, and on both, for the same number of
images each time; all are tested on real images that neither they nor the generator were trained on.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner import api, checkpoint, families, files
from limner.config import parse_budget
from limner.core import Classifies, Generates, LimnerError
from limner.data import Data, batches, finder
from limner.evaluation.checks import TestImages, find_test_images
from limner.evaluation.real import MIN_IMAGES, Real, as_saved, open_real
from limner.fields import JsonResult
from limner.inference.pipeline import Pipeline
from limner.inference.understand import class_probabilities, over_data
from limner.metrics.probes import student, wilson
from limner.pictures.grid import png
from limner.progress import bar
from limner.settings import Stopped
from limner.synthesis.options import SynthesizeOptions, TrainingDataOptions
from limner.synthesis.synthesize import synthesize

KINDS = {"real": "real images", "synthetic": "synthetic images", "both": "both, half and half"}
OWN = re.compile(  # files in the folder of an experiment
    r"real/(\d+\.png|metadata\.jsonl)|synthetic/(\.?-?\d+\.png|metadata\.jsonl|provenance\.json)|"
    r"classifiers/\w+-\d+/(config\.json|log\.jsonl|model\.safetensors|samples/\d+\.png|"
    r"checkpoints/[^/]+/(model\.safetensors|live\.safetensors|state\.json))|(.*/)?\.[^/]*(/.*)?"
)
DEFAULT_N = 1000  # synthetic images, at least, where no number is given


@dataclass(frozen=True)
class Score(JsonResult):
    """The accuracy of the classifiers of one kind."""

    accuracy: float  # mean over the repeats
    low: float  # 95% interval over images, and over seeds where there are several runs
    high: float
    runs: list[float]  # accuracy of each repeat

    @classmethod
    def of(cls, correct: list[Tensor]) -> Score:
        """From which test images each classifier got right, [N] bool each."""
        runs, n = [float(each.double().mean()) for each in correct], len(correct[0])
        accuracy = sum(runs) / len(runs)
        images, seeds = accuracy * (1 - accuracy) / n, _variance_of_mean(runs)
        if not seeds:
            return cls(accuracy, *wilson(accuracy, n), runs)
        df = (images + seeds) ** 2 / (images**2 / (n - 1) + seeds**2 / (len(runs) - 1))
        return cls(accuracy, *wilson(accuracy, n * images / (images + seeds), student(df)), runs)


@dataclass(frozen=True)
class Difference(JsonResult):
    """Of two accuracies on the same images, with its 95% interval over images and seeds."""

    value: float
    low: float  # -1 and 1 from one run of each: then nothing is known of the seeds
    high: float

    def verdict(self) -> str:
        """'helps', 'hurts' or 'unclear': which side of zero the interval lies on."""
        return "helps" if self.low > 0 else "hurts" if self.high < 0 else "unclear"


@dataclass(frozen=True)
class TrainingDataScores(JsonResult):
    """What classifiers reach that are trained on real images, on synthetic ones, and on both."""

    classifier: str  # family
    preset: str | None
    budget: str
    repeats: int
    n_test: int
    n_real: int
    n_synthetic: int
    left_out: int  # held-out images that someone was trained on
    checked: bool  # whether the generator's own images could be opened to find those
    real_share_of_both: float
    real: Score
    synthetic: Score
    both: Score
    difference: Difference  # of both and real
    verdict: str
    said: str  # the verdict in a sentence


def as_training_data(
    run: str | Path, sources: Sequence[str], options: TrainingDataOptions = TrainingDataOptions(), *,
    n: int | None = None, seed: int = 0, to: str | Path | None = None, quiet: bool = False, **sampling: Any,
) -> TrainingDataScores:  # fmt: skip
    """Train classifiers on real and synthetic images and on both, and test them on held-out real images.

    ``n`` synthetic images, from ``seed`` on: at least DEFAULT_N, and as many as the real ones, unless given.
    ``sampling`` holds fields of the family's Sampling. Writes the images and the classifiers into
    ``to``/training_data; a second call with the same settings resumes. Raises LimnerError.
    """
    folder = Path(to or checkpoint.folder_of(run) / "evaluation") / "training_data"
    pipeline = Pipeline(run)
    real, test = _open(pipeline, sources, options, quiet)
    chosen = pipeline.named_sampling(sampling)  # refused before anything is written
    budget, length = options.classifier_budget, parse_budget(options.classifier_budget, len(real.training))
    if length.unit == "images":  # epochs are of the real images, so that all three kinds see as many
        budget = f"{math.ceil(length.amount)}img"
    training, n_real = real.training, len(real.training)
    n = n or max(DEFAULT_N, n_real)
    counts = {"real": (1, 0), "synthetic": (0, 1), "both": balance(n_real, n)}
    family, preset = options.classifier_family, options.classifier_preset
    settings = {
        "run": pipeline.digest, "sources": list(sources), "fingerprint": training.fingerprint, "real": n_real,
        "n": n, "seed": seed, "family": family, "preset": preset, "budget": budget,
        **({"knobs": {name: str(getattr(chosen, name)) for name in sampling}} if sampling else {}),
    }  # fmt: skip
    _begin(folder, settings)
    _write(training, folder / "real", quiet)
    # With the source's own classes, of which the run may know more.
    drawing = SynthesizeOptions(n=n, label=training.spec.classes, seed=seed)
    synthesize(run, folder / "synthetic", drawing, quiet=quiet, **sampling)
    correct: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for repeat in range(seed, seed + options.repeats):
        for kind, (reals, synthetics) in counts.items():
            parts = [str(folder / "real")] * reals + [str(folder / "synthetic")] * synthetics
            out = folder / "classifiers" / f"{kind}-{repeat}"
            _train(pipeline, options, parts, out, budget, repeat, quiet)
            correct[kind].append(correct_predictions(out, test.data))
    scores = {kind: Score.of(each) for kind, each in correct.items()}
    difference = paired(torch.stack(correct["both"]), torch.stack(correct["real"]))
    reals, synthetics = counts["both"][0] * n_real, counts["both"][1] * n
    accuracies = scores["real"].accuracy, scores["both"].accuracy
    said = sentence(*accuracies, difference, len(test.data), options.repeats)
    return TrainingDataScores(
        classifier=family, preset=preset or None, budget=budget, repeats=options.repeats, n_test=len(test.data),
        n_real=n_real, n_synthetic=n, left_out=test.left_out, checked=test.checked,
        real_share_of_both=reals / (reals + synthetics), **scores, difference=difference,
        verdict=difference.verdict(), said=said,
    )  # fmt: skip


def _open(
    pipeline: Pipeline, sources: Sequence[str], options: TrainingDataOptions, quiet: bool
) -> tuple[Real, TestImages]:
    """The real images and those to test on. Raises LimnerError for all that can be wrong, before anything is drawn."""
    if not issubclass(families.load(options.classifier_family), Classifies):
        raise LimnerError(
            f"{options.classifier_family} does not classify: name a family that does, such as {families.CLASSIFIER}."
        )
    if not isinstance(pipeline.model, Generates) or "label" not in pipeline.model.follows:
        raise LimnerError(
            f"{pipeline.loaded.path} cannot draw images of a given class, so they would have no labels: use a run "
            f"that was trained on labelled images."
        )
    parse_budget(options.classifier_budget, 1)
    data, known, named = pipeline.loaded.run.data, pipeline.spec.classes, ", ".join(sources)
    real = open_real(sources, pipeline.spec, data, not quiet)
    if real.training.labels is None:
        raise LimnerError(f"{named} has no classes: give images sorted into folders, or with labels.")
    find = finder(known)
    if strange := [name for name in real.training.spec.classes if find(name) < 0]:
        raise LimnerError(
            f"The run knows no class {strange[0]!r} of {named}, only {', '.join(known[:12])}: name a source with "
            f"classes that it was trained on."
        )
    test = find_test_images(pipeline, real, quiet)
    if len(test.data) < MIN_IMAGES:
        raise LimnerError(
            f"{len(test.data)} held-out images are too few to test a classifier on: give a source so large that "
            f"its held-out part ({data.holdout:.0%}) has at least {MIN_IMAGES}."
        )
    return real, test


def _train(
    pipeline: Pipeline, options: TrainingDataOptions, parts: list[str], out: Path, budget: str, seed: int, quiet: bool,
) -> None:  # fmt: skip
    """Train a classifier, or finish an interrupted training. Raises Stopped where a signal stops it."""
    resume, spec, data = checkpoint.exists(out), pipeline.spec, pipeline.loaded.run.data
    if resume:
        header = checkpoint.load(out).header
        if parse_budget(budget, 1).spent(header.get("seconds", 0.0), header["seen"]) >= 1:
            return
    result = api.train(
        options.classifier_family, parts, out, preset=options.classifier_preset or None, budget=budget,
        size=(spec.height, spec.width), seed=seed, resume=resume, quiet=quiet,
        data={"channels": spec.channels, "captions": False, "holdout": 0.0, "flip": data.flip, "cache": data.cache},
    )  # fmt: skip
    if result.stopped:
        raise Stopped(result.stopped)


def correct_predictions(classifier: Path, test: Data) -> Tensor:
    """[N] bool, whether a trained classifier gives each image its class; classes go by their names."""
    pipeline = Pipeline(classifier)
    assert test.labels is not None
    index = torch.tensor(list(map(finder(pipeline.spec.classes), test.spec.classes)))
    truth = index[torch.from_numpy(test.labels)]
    return over_data(test, lambda images: class_probabilities(pipeline, as_saved(images))).argmax(1) == truth


def paired(one: Tensor, other: Tensor) -> Difference:
    """How much more often ``one`` is correct than ``other`` [R, N] bool: R classifiers each, on the same N images.

    The variance is that over images, of paired differences with half an image added to each cell of the table
    (Agresti and Min 2005), and that over the seeds of both. Student's factor has the degrees of freedom of their sum
    (Welch 1947, Satterthwaite 1946), at most those of the seeds. Equal classifiers differ by their seed, often more
    than by the choice of images, so one classifier each says nothing.
    """
    each = (one.double() - other.double()).mean(0)  # [N]
    value, n, repeats = float(each.mean()), len(each), len(one)
    if repeats < 2:
        return Difference(value, -1.0, 1.0)
    middle = float(each.sum()) / (n + 2)
    images = ((float(each.square().sum()) + 1) / (n + 2) - middle**2) / (n + 2)
    seeds = [_variance_of_mean(rows.double().mean(1).tolist()) for rows in (one, other)]
    variance = images + sum(seeds)
    df = variance**2 / (images**2 / (n - 1) + sum(v**2 for v in seeds) / (repeats - 1))
    half = student(min(df, 2 * (repeats - 1))) * math.sqrt(variance)
    return Difference(value, max(-1.0, middle - half), min(1.0, middle + half))


def _variance_of_mean(runs: Sequence[float]) -> float:
    """Of the mean over runs, by how they differ; 0 for a single run."""
    return statistics.variance(runs) / len(runs) if len(runs) > 1 else 0.0


def sentence(real: float, both: float, difference: Difference, n: int, repeats: int = 2) -> str:
    """Whether the synthetic images help, from the accuracies of both kinds of classifiers on ``n`` images."""
    figures = f"{real:.1%} -> {both:.1%} of {n:,} held-out images"
    if repeats < 2:
        return (
            f"One repeat cannot say whether synthetic images help: {figures}, but equal classifiers differ by their "
            f"seed, which only repeats show: use --repeats {TrainingDataOptions().repeats} or more."
        )
    points, low, high = (100 * v for v in (difference.value, difference.low, difference.high))
    start = {
        "helps": "Adding synthetic images helps", "hurts": "Adding synthetic images does not help, it hurts",
        "unclear": "With and without synthetic images cannot be told apart",
    }[difference.verdict()]  # fmt: skip
    interval = f"{points:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}"
    return f"{start}: {figures} ({interval})."


def table_rows(result: TrainingDataScores) -> list[tuple[str, str, str, str, str]]:
    """Trained on, images, accuracy, 95% interval, lowest to highest over repeats."""
    real, synthetic = result.n_real, result.n_synthetic
    counts, rows = {"real": real, "synthetic": synthetic, "both": real + synthetic}, []
    for kind, name in KINDS.items():
        score: Score = getattr(result, kind)
        spread = f"{min(score.runs):.1%} to {max(score.runs):.1%}" if len(score.runs) > 1 else ""
        interval = f"{score.low:.1%} to {score.high:.1%}"
        rows.append((name, f"{counts[kind]:,}", f"{score.accuracy:.1%}", interval, spread))
    return rows


def add_to_evaluation(result: TrainingDataScores, folder: str | Path) -> None:
    """Write the result into the evaluation.json of a folder, as its ``training_data``."""
    path = Path(folder) / "evaluation.json"  # evaluate has just written it
    evaluation = files.read_json(path) if path.exists() else {}
    files.write_json(path, evaluation | {"training_data": result.to_json()})


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    """Remove what a call with other settings left there. Raises LimnerError, and removes nothing, for other files."""
    about = folder / "asked.json"
    parts = [part for name in ("real", "synthetic", "classifiers") if (part := folder / name).exists()]
    earlier: dict[str, Any] = {}
    if about.exists():
        try:
            earlier = files.read_json(about)
        except files.Damaged as error:
            warnings.warn(f"{error} What lies beside it is made again.", stacklevel=2)
    if earlier != settings:
        inside = [path for part in parts for path in part.rglob("*") if not path.is_dir()]
        others = [path for path in inside if not OWN.fullmatch(path.relative_to(folder).as_posix())]
        for path in others or (() if about.exists() else parts):
            raise LimnerError(f"{path} was not made by --as-training-data: move it, or name another --to.")
        for part in parts:
            files.remove_folder(part)
    files.write_json(about, settings)


def _write(data: Data, folder: Path, quiet: bool) -> None:
    """The images as PNG, with their labels in metadata.jsonl, which is written last."""
    if (folder / "metadata.jsonl").exists():
        return
    assert data.labels is not None
    lines: list[str] = []
    with bar("writing real images", quiet) as watch, files.writing(folder):
        folder.mkdir(exist_ok=True)
        for batch in batches(data):
            images: dict[Path, bytes] = {}
            for image in batch:
                name, label = f"{len(lines):06d}.png", data.spec.classes[data.labels[len(lines)]]
                images[folder / name] = png(image, data.spec.bits)
                lines.append(json.dumps({"file_name": name, "label": label}, ensure_ascii=False) + "\n")
            files.write_synced(images)
            watch(len(lines) / len(data))
    files.write_text(folder / "metadata.jsonl", "".join(lines))


def balance(reals: int, synthetics: int) -> tuple[int, int]:
    """How often to name each folder as a source, so that each makes up about half of the images.

    A folder that is named twice is read twice; no image is copied on disk.
    """
    ratio = Fraction(max(reals, synthetics), min(reals, synthetics)).limit_denominator(4)
    more, less = ratio.denominator, ratio.numerator  # of the larger folder, and of the smaller one
    return (more, less) if reals >= synthetics else (less, more)
