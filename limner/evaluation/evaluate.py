"""Is it good, and is it copying? A run or a folder of images, measured against real images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import checkpoint, files
from limner.checkpoint import exists
from limner.config import to_json
from limner.core import (
    Autoencodes,
    Classifies,
    Condition,
    DataOptions,
    Describes,
    Generates,
    ImageSpec,
    LimnerError,
    Model,
    nearest,
)
from limner.data import Data, open_data, open_like, own_size
from limner.device import pick_device
from limner.distributed import ALONE, Ranks, join
from limner.evaluation import probe
from limner.evaluation.report import number
from limner.inference.pipeline import Pipeline, captions_of, generate
from limner.inference.understand import over
from limner.metrics import distances, neighbours, pixels
from limner.metrics.features import Features, of_model
from limner.metrics.find import FEATURES, find
from limner.pictures.grid import grid
from limner.progress import bar

HALVES = 24  # random halves behind each interval
FLOORS = 5  # ways to part the real images, whose mean is the floor
LEAST = 20  # images on either side, below which nothing can be said
REFERENCE = 2000  # real images to measure distances to, at least, where there are as many
BATCH = 64
MOST = 512  # pixels a side of a folder's images that are measured as they are
WORST = 16  # pairs on the picture of nearest training images

Watch = Callable[[float], None]


@dataclass(frozen=True)
class Drawn:
    """Images to measure, as 8-bit files hold them."""

    images: Tensor  # [N, C, H, W] in [-1, 1]
    captions: list[str] | None = None  # what each was asked to show


@dataclass(frozen=True)
class Real:
    """The images to measure against: those that were trained on, and those that were held out."""

    training: Data
    held_out: Data

    def __len__(self) -> int:
        return len(self.training) + len(self.held_out)


def as_saved(images: Tensor) -> Tensor:
    """[N, C, H, W] in [-1, 1] rounded to 8 bits: everything is judged by what a PNG would hold."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


def as_bytes(images: Tensor) -> np.ndarray:
    """[N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C]"""
    return ((images + 1) * 127.5).round().byte().movedim(1, -1).numpy()


def open_real(sources: Sequence[str], spec: ImageSpec, options: DataOptions, progress: bool = True) -> Real:
    """Sources at the size and channels of ``spec``, split as training splits them."""
    return Real(*open_like(sources, spec, options, progress).split(options.holdout, options.per_class))


def warn_if_changed(pipeline: Pipeline, sources: Sequence[str], real: Real) -> None:
    """Where the run's own images have changed, others are held out now than when it was trained."""
    then = pipeline.loaded.header.get("data")
    own = list(pipeline.loaded.run.sources) == list(sources)
    if own and then and then != real.training.fingerprint:
        warnings.warn(
            f"{', '.join(sources)} is not what it was when the run was trained on it: what is held out now may "
            "have been learnt, so trust no figure of held-out images.",
            stacklevel=2,
        )


def condition_like(model: Model, data: Data, n: int, seed: int = 0) -> Condition:
    """The labels and captions of ``n`` random images, as far as the model follows them.

    Labels go by their names; where the data has none, every class is asked for as often. Raises LimnerError
    when the data has a class that the model does not know.
    """
    rows = data.order(0, n, seed)
    label = text = None
    image = data.batch(rows).condition.image if "given" in model.follows else None
    if "label" in model.follows:
        known = model.spec.classes
        if data.labels is None:
            label = torch.from_numpy(np.random.default_rng(seed).permutation(np.arange(n) % len(known)))
        else:
            names = [data.spec.classes[i] for i in data.labels[rows]]
            for name in set(names) - set(known):
                raise LimnerError(
                    f"The run knows no class {name!r} of these images.{nearest(name, known)} Measure it without "
                    f"labels, or against the images that it was trained on."
                )
            label = torch.tensor([known.index(name) for name in names])
    if "text" in model.follows and data.captions is not None:
        text = [data.captions[i] for i in rows]
    return Condition(n, label, text, image)


def draw_like(
    pipeline: Pipeline,
    real: Real,
    n: int,
    seed: int = 0,
    watch: Watch | None = None,
    ranks: Ranks = ALONE,
    sampling: Any = None,
) -> Drawn:
    """``n`` images with the labels or captions of random training images, seeds seed to seed + n - 1.

    ``sampling`` is the family's Sampling. Of several processes each draws its share, and all get all.
    """
    model = pipeline.model
    if not isinstance(model, Generates):
        raise LimnerError(f"The family {pipeline.loaded.run.family} draws no images to measure.")
    condition = condition_like(model, real.training, n, seed).to(model.device)
    mine, seeds = ranks.part(n), range(seed, seed + n)
    images = generate(
        model, condition[mine], seeds[mine], sampling, watch=watch, precision=pipeline.precision
    )
    return Drawn(ranks.gather(as_saved(images), n), captions_of(model.spec, condition))


@dataclass(frozen=True)
class Described:
    """The features [N, D] of each part."""

    by: Features
    drawn: Tensor
    training: Tensor
    held_out: Tensor


def describe(
    drawn: Drawn, real: Real, features: Features, watch: Watch | None = None, ranks: Ranks = ALONE
) -> Described:
    """The features of drawn and real images, of which each process describes its share.

    Raises LimnerError where either side has too few to measure.
    """
    n, total = len(drawn.images), len(drawn.images) + len(real)
    if min(n, len(real)) < LEAST:
        raise LimnerError(
            f"{n} images against {len(real)} real ones are too few to measure: both sides need at least {LEAST}."
        )

    def tell(before: int, count: int) -> Watch | None:
        return (lambda done: watch((before + done * count) / total)) if watch else None

    mine, told = drawn.images[ranks.part(n)], tell(0, n)
    count = (lambda done: told(done / len(mine))) if told else None
    x = ranks.gather(features.of(mine.split(BATCH), count), n)
    training = over(real.training, features.of, tell(n, len(real.training)), ranks)
    if not len(real.held_out):
        return Described(features, x, training, training[:0])
    held_out = over(real.held_out, features.of, tell(n + len(training), len(real.held_out)), ranks)
    return Described(features, x, training, held_out)


def measure(
    drawn: Drawn, real: Real, seen: Described, watch: Watch | None = None, seed: int = 0, k: int = 5
) -> dict[str, Any]:
    """Every figure that a set of images has against the real ones, each with its interval and its floor.

    Distances and neighbourhoods are taken to a random part of the real images, twice as many as were drawn or
    REFERENCE; copies are looked for among all that were trained on.
    """
    x, n = seen.drawn, len(seen.drawn)
    y = torch.cat([seen.training, seen.held_out])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[: max(2 * n, REFERENCE)]]
    side = min(n, len(y) // 2)
    samples = [(x, y)]
    samples += [
        (x[i], y[j])
        for i, j in zip(
            distances.halves(n, HALVES, seed), distances.halves(len(y), HALVES, seed + 1), strict=True
        )
    ]
    samples += [(y[i], y[j]) for i, j in distances.disjoint(len(y), side, FLOORS, seed)]
    found = []
    for done, (a, b) in enumerate(samples, start=1):
        found.append(_figures(a, b, k))
        if watch:
            watch(done / len(samples))

    told: dict[str, Any] = {
        "n": n, "real": len(y), "size": list(drawn.images.shape[2:]),
        "features": seen.by.name, "features_hash": seen.by.hash, "resize": seen.by.resize,
    }  # fmt: skip
    for name, value in found[0].items():
        low, high = distances.interval(value, [half[name] for half in found[1 : 1 + HALVES]])
        usual = sum(of_real[name] for of_real in found[1 + HALVES :]) / FLOORS
        told[name] = {"value": value, "low": low, "high": high, "floor": usual, "floor_n": side}
    if len(seen.held_out) >= LEAST:
        for name, points in (("memorised", x), ("memorised_held_out", seen.held_out)):
            copies = neighbours.memorised(points, seen.training, seen.held_out)
            told[name] = float(copies.double().mean())
    rows = real.training.order(0, min(n, len(real.training)), seed)
    told["sliced_wasserstein"] = pixels.sliced_wasserstein(
        drawn.images, real.training.batch(rows).image, seed=seed
    )
    if drawn.captions and real.training.oracle:
        told["prompts_exact"] = real.training.oracle.score(as_bytes(drawn.images), drawn.captions)["exact"]
    return told


def _figures(x: Tensor, y: Tensor, k: int) -> dict[str, float]:
    """Of drawn features [N, D] against real ones [M, D]."""
    precision, recall = neighbours.precision_recall(y, x, k)
    density, coverage = neighbours.density_coverage(y, x, k)
    return {
        "kid": distances.kernel_distance(x, y), "frechet": distances.frechet_distance(x, y),
        "precision": precision, "recall": recall, "density": density, "coverage": coverage,
    }  # fmt: skip


def find_features(name: str, weights: str = "") -> Features:
    """The features of a name, or of a run that describes images."""
    if name in FEATURES or not (exists(name) or Path(name).suffix == ".safetensors"):
        return find(name, weights)
    describer = Pipeline(name)
    return of_model(describer.model, name, str(describer.loaded.header.get("digest", "")))


def nearest_pairs(drawn: Drawn, real: Real, seen: Described, count: int = WORST) -> tuple[Tensor, list[str]]:
    """The images nearest to a training image, each followed by it: [2 count, C, H, W] and what to write below."""
    away, which = neighbours.nearest_distances(seen.drawn, seen.training)
    worst = away.argsort()[:count]
    originals = real.training.batch(which[worst].numpy()).image
    sheet = torch.stack([drawn.images[worst], originals], dim=1).flatten(0, 1)
    words = [word for d in away[worst].tolist() for word in ("drawn", f"training, {d:.2g} away")]
    return sheet, words


def reconstruction(pipeline: Pipeline, real: Real, limit: int = 512) -> dict[str, float]:
    """How an autoencoder gives held-out images back: PSNR in dB, SSIM, MS-SSIM, and how many they were."""
    model = pipeline.model
    assert isinstance(model, Autoencodes)
    data = real.held_out if len(real.held_out) else real.training
    sums: dict[str, float] = {}
    count = 0
    rows = data.order(0, min(limit, len(data)), 0)  # random ones: files of one class may lie together
    with torch.inference_mode():
        for at in range(0, len(rows), BATCH):
            image = data.batch(rows[at : at + BATCH]).image
            back = as_saved(model.decode(model.encode(image.to(model.device))).float().cpu())
            found = {"psnr": pixels.psnr(back, image).clamp(max=100)}
            if min(image.shape[-2:]) >= 11:
                found |= {"ssim": pixels.ssim(back, image), "ms_ssim": pixels.ms_ssim(back, image)}
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value.sum())
            count += len(image)
    return {name: value / count for name, value in sums.items()} | {"n": count}


# The command --------------------------------------------------------------------------------------------


def evaluate(
    what: str | Path,
    sources: Sequence[str],
    n: int | None = None,
    features: str = "random",
    weights: str = "",
    to: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
    labels_per_class: int = 0,
    **knobs: Any,
) -> dict[str, Any]:
    """Measure a run, or a folder of images that any program made, against real images; keep what was found.

    What a run draws is held against the images; what it sees in them against their labels, as ``probe.measure`` says,
    which takes ``labels_per_class``. ``knobs`` are fields of the family's Sampling. Writes evaluation.json, and
    nearest.png with the images nearest to training images, into ``to``. Of several processes (torchrun) each draws and
    describes its share; the first measures and writes, the others return {}. Raises LimnerError for what the person
    can mend.
    """
    with join(pick_device(), 1, ()) as ranks:
        quiet = quiet or not ranks.first
        return _evaluate(
            Path(what), sources, n, features, weights, to, seed, quiet, labels_per_class, ranks, knobs
        )


def _evaluate(
    what: Path, sources: Sequence[str], n: int | None, features: str, weights: str, to: str | Path | None,
    seed: int, quiet: bool, labels_per_class: int, ranks: Ranks, knobs: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    told: dict[str, Any] = {"of": str(what), "against": list(sources)}
    pipeline, drawn, understood = None, None, dict[str, Any]()
    if what.suffix == ".safetensors" or exists(what):
        pipeline = Pipeline(what)
        out = Path(to or checkpoint.folder_of(what) / "evaluation")
        told["run"] = pipeline.loaded.header.get("digest", "")
        with ranks.in_turn():
            real = open_real(sources, pipeline.spec, pipeline.loaded.run.data, not quiet)
        if ranks.first:
            warn_if_changed(pipeline, sources, real)
        understood = probe.measure(
            pipeline, sources, real.training, real.held_out, labels_per_class, seed, quiet, ranks
        )
        if isinstance(pipeline.model, Generates):
            count = n or min(1000, len(real))
            sampling = pipeline.sampling(knobs)
            told["sampling"] = to_json(pipeline.model.Sampling(**knobs))  # a run by its name, not its weights
            with bar(f"drawing {count:,} images", quiet) as watch:
                drawn = draw_like(pipeline, real, count, seed, watch, ranks, sampling)
    elif labels_per_class:
        raise LimnerError(
            f"--labels-per-class probes the features of a run, and {what} is none: leave it out."
        )
    elif knobs and what.exists():
        raise LimnerError(
            f"{', '.join(knobs)} would say how a run draws, and {what} is none: leave that out, or measure the run."
        )
    elif what.exists():
        out = Path(to or f"{what.name}-evaluation")
        with ranks.in_turn():
            labels = DataOptions(labels=False, captions=False)
            size = own_size(what)  # as they are, rather than as they would be trained on
            size = size if size and max(size) <= MOST else None
            made = open_data([str(what)], size=size, progress=not quiet, options=labels)
            real = open_real(sources, made.spec, DataOptions(), not quiet)
        drawn = Drawn(as_saved(made.batch(made.order(0, min(n or len(made), len(made)), seed)).image))
    else:
        raise LimnerError(f"There is neither a run nor a folder of images at {what}.")
    if drawn:
        with bar("describing", quiet) as watch:
            seen = describe(drawn, real, find_features(features, weights), watch, ranks)
    if not ranks.first:
        return {}
    if drawn:
        with bar("measuring", quiet) as watch:
            told |= measure(drawn, real, seen, watch, seed)
    if pipeline and isinstance(pipeline.model, Autoencodes):
        told["reconstruction"] = reconstruction(pipeline, real)
    elif pipeline and not drawn and not understood:
        raise LimnerError(f"There is nothing to measure of {what}: {_why_nothing(pipeline, real)}.")
    told |= understood
    out.mkdir(parents=True, exist_ok=True)
    if drawn:
        sheet, words = nearest_pairs(drawn, real, seen)
        grid(sheet, words, columns=8).save(out / "nearest.png")
        grid(drawn.images[:64], drawn.captions[:64] if drawn.captions else None).save(out / "drawn.png")
    files.write_json(out / "evaluation.json", told)
    return told | {"to": str(out)}


def _why_nothing(pipeline: Pipeline, real: Real) -> str:
    if not isinstance(pipeline.model, Describes | Classifies):
        return "it neither draws, gives images back, describes nor classifies"
    return probe.why_not(real.held_out)


ABOUT = {
    "kid": "kernel distance (KID), lower is better",
    "frechet": "Frechet distance, lower is better",
    "precision": "precision: share that looks real",
    "recall": "recall: share of the real that it covers",
    "density": "density",
    "coverage": "coverage",
}


def rows(told: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was found as lines of a table: figure, value, 95% interval, real against real."""
    table = []
    for name, about in ABOUT.items():
        if name in told:
            v = told[name]
            value, low, high, floor = (number(v[part], 4) for part in ("value", "low", "high", "floor"))
            table.append((about, value, f"{low} to {high}", floor))
    if "memorised" in told:
        held = f"{told['memorised_held_out']:.1%}"
        about = "memorised: nearer to a training image than held-out ones are"
        table.append((about, f"{told['memorised']:.1%}", "", held))
    for side, value in told.get("sliced_wasserstein", {}).items():
        table.append((f"sliced Wasserstein at {side} pixels, x1000", number(value, 4), "", ""))
    if "prompts_exact" in told:
        table.append(("prompts drawn with every attribute right", f"{told['prompts_exact']:.1%}", "", ""))
    for name, unit in (("psnr", " dB"), ("ssim", ""), ("ms_ssim", "")):
        if name in told.get("reconstruction", {}):
            label = f"{name.replace('_', '-').upper()} of held-out images given back"
            table.append((label, number(told["reconstruction"][name], 4) + unit, "", ""))
    return table + probe.rows(told)
