"""What a run makes of images: their features, their classes, and which images are similar."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn import functional as F

from limner import checkpoint, families, files
from limner.core import Classifies, Describes, Latent, LimnerError, nearest
from limner.data import Data, batches, finder, open_like
from limner.device import autocast
from limner.distributed import ALONE, Ranks
from limner.fields import Count, JsonResult, checked
from limner.inference.pipeline import Pipeline
from limner.inference.precision import choose_bf16, network_name
from limner.inference.threads import THREADS
from limner.metrics import probes
from limner.metrics.features import resize, with_channels
from limner.pictures.grid import save_grid
from limner.progress import Watch, bar, ignore
from limner.settings import join_words, need

SHEET = 64  # images on the sheet of predictions
TOP = 3  # classes kept of each image
LACKS: dict[type, str] = {  # what a run without a protocol cannot do
    Describes: "does not describe images", Classifies: "does not classify images", Latent: "has no latent space"
}  # fmt: skip


# Networks over images -----------------------------------------------------------------------------------


def open_run(run: str | Path, protocol: type, device: str = "auto") -> Pipeline:
    """A run that Describes, Classifies or is Latent. Raises LimnerError for another, before any image is read."""
    pipeline = Pipeline(run, device)
    if not supports(pipeline, protocol):
        raise unsupported(pipeline, protocol)
    return pipeline


def supports(pipeline: Pipeline, protocol: type) -> bool:
    """Whether a run has the methods of a protocol, and to classify also classes that it was trained on."""
    return isinstance(pipeline.model, protocol) and (
        protocol is not Classifies or bool(pipeline.spec.classes)
    )


def unsupported(pipeline: Pipeline, protocol: type) -> LimnerError:
    """The error that says why a run does not support a protocol, and which do."""
    path, family = pipeline.loaded.path, pipeline.loaded.run.family
    able = families.supporting(protocol)
    if family in able:  # it needs labels
        return LimnerError(
            f"{path} was trained without labels, so it cannot classify: use a run that was trained on labelled images."
        )
    return LimnerError(
        f"{path} is a run of {family}, which {LACKS[protocol]}: use a run of {join_words(able)}."
    )


def extract_features(pipeline: Pipeline, images: Tensor) -> Tensor:
    """[B, C, H, W] of any size and channels -> features, float32 [B, D] on the CPU."""
    assert isinstance(pipeline.model, Describes)
    return _apply(pipeline, pipeline.model.features, images)


def class_probabilities(pipeline: Pipeline, images: Tensor) -> Tensor:
    """[B, C, H, W] of any size and channels -> float64 [B, K] on the CPU, each row summing to 1."""
    assert isinstance(pipeline.model, Classifies)
    return _apply(pipeline, pipeline.model.classify, images).double().softmax(1)


def _apply(pipeline: Pipeline, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    model, spec = pipeline.model, pipeline.spec
    images = resize(with_channels(images, spec.channels), spec.height, spec.width).to(model.device)

    def run(in_bf16: bool) -> Tensor:
        with torch.inference_mode(), autocast(model.device, in_bf16):
            return network(images).float().cpu()

    name = network_name(model.family, (model.config, spec, network.__name__), len(images), "understand")
    return run(choose_bf16(model.device, pipeline.precision, name, run))


def over_batches(
    network: Callable[[Tensor], Tensor], images: Iterable[Tensor], n: int, watch: Watch = ignore
) -> Tensor:
    """[n, ...] the outputs of a network for batches of images, ``n`` in all."""
    outputs, done = [], 0
    with THREADS.at_work():
        for batch in THREADS.each(images, "images"):
            outputs.append(network(batch))
            done += len(batch)
            watch(done / n)
    return torch.cat(outputs)


def over_data(
    data: Data, network: Callable[[Tensor], Tensor], watch: Watch = ignore, ranks: Ranks = ALONE
) -> Tensor:
    """[N, ...] the outputs of a network for all images, in batches; each process computes its part and gets all."""
    mine = data.part(np.arange(len(data))[ranks.part(len(data))])
    return ranks.gather(over_batches(network, batches(mine), len(mine), watch), len(data))


def open_for_run(pipeline: Pipeline, sources: Sequence[str], progress: bool = True, **changes: Any) -> Data:
    """Sources at the size and channels of a run, with their labels even if it was trained without."""
    options = {"labels": True, **changes}
    return open_like(sources, pipeline.spec, pipeline.loaded.run.data, progress, **options)


# Labels -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy(JsonResult):
    """A fraction of ``n`` images, with its 95% interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, value: float, n: int) -> Accuracy:
        return cls(value, *probes.wilson(value, n), n)


def class_names(data: Data) -> list[str]:
    """Each image's class, '' where the data has none."""
    if data.labels is None:
        return [""] * len(data)
    return [data.spec.classes[i] if i >= 0 else "" for i in data.labels]


def unknown_class(data: Data, classes: Sequence[str]) -> str | None:
    """A class of the data that is not among ``classes``, if there is one."""
    find = finder(classes)
    return next((name for name in sorted(set(class_names(data))) if name and find(name) < 0), None)


def class_indices(data: Data, classes: Sequence[str]) -> Tensor:
    """[N] the index of each image's class in ``classes``, -1 for none. Raises LimnerError for an unknown class."""
    if (name := unknown_class(data, classes)) is not None:
        raise LimnerError(
            f"The run knows no class {name!r} of these images.{nearest(name, classes)} It knows "
            f"{', '.join(classes[:12])}: rename the folders, or ignore the labels with --no-labels."
        )
    return torch.tensor(list(map(finder(classes), class_names(data))))


# Embedding ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embeddings(JsonResult):
    """What ``embed`` wrote."""

    run: str  # digest
    n: int
    features: int  # dimensions
    labels: int  # classes of the images
    to: str


def embed(
    run: str | Path, sources: Sequence[str], to: str | Path, device: str = "auto", quiet: bool = False
) -> Embeddings:
    """Write every image's name, label ('' for none) and features [D] to a .npz, .safetensors or .parquet file.

    In npz and parquet they are ``path``, ``label`` and ``features``; in safetensors the names and labels are JSON
    lists in the metadata. Raises LimnerError.
    """
    to = Path(to)
    files.refuse_to_replace(to, sources)
    if to.suffix not in (".npz", ".safetensors", ".parquet"):
        raise LimnerError(f"Cannot write features to {to}: name a .npz, .safetensors or .parquet file.")
    if to.suffix == ".parquet":
        reason = "Parquet files need the data extra", "data"
        pyarrow, parquet = (need(name, *reason) for name in ("pyarrow", "pyarrow.parquet"))
    files.check_writable(to)
    pipeline = open_run(run, Describes, device)
    data = open_for_run(pipeline, sources, not quiet)
    with bar(f"describing {len(data):,} images", quiet) as watch:
        features = over_data(data, partial(extract_features, pipeline), watch).numpy()
    columns = {"path": data.names, "label": class_names(data)}
    with files.atomic(to) as unfinished:
        if to.suffix == ".npz":
            names, labels = (np.array(column, np.str_) for column in columns.values())
            with open(unfinished, "wb") as file:  # by name NumPy would add a suffix
                np.savez(file, path=names, label=labels, features=features)
        elif to.suffix == ".safetensors":
            lists = {name: json.dumps(column, ensure_ascii=False) for name, column in columns.items()}
            save_file({"features": features}, unfinished, metadata=lists)
        else:
            flat = pyarrow.array(features.reshape(-1))
            vectors = pyarrow.FixedSizeListArray.from_arrays(flat, features.shape[1])
            parquet.write_table(pyarrow.table({**columns, "features": vectors}), unfinished)
    return Embeddings(pipeline.digest, len(data), features.shape[1], len(data.spec.classes), str(to))


# Classifying --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassProbability(JsonResult):
    class_: str
    probability: float


@dataclass(frozen=True)
class Prediction(JsonResult):
    """The class of one image."""

    path: str
    label: str  # '' where it is not known
    predicted: str
    probability: float
    top: list[ClassProbability]  # the most probable classes

    @property
    def wrong(self) -> bool:
        return self.label not in ("", self.predicted)

    def caption(self) -> str:
        """'cat, 97%', and the label where that is wrong."""
        return f"{self.predicted}, {self.probability:.0%}{f' (is {self.label})' if self.wrong else ''}"


@dataclass(frozen=True, kw_only=True)
class Classification(JsonResult):
    """The class of every image."""

    run: str  # digest
    n: int
    trained_on_these: bool | None = None  # whether the run was trained on this source; where labels are known
    accuracy: Accuracy | None = None
    to: str
    sheet: str
    predictions: list[Prediction]


def classify(
    run: str | Path, sources: Sequence[str], to: str | Path = "", labels: bool = True, device: str = "auto",
    quiet: bool = False,
) -> Classification:  # fmt: skip
    """The class of every image, in a .csv or .json file and on a sheet beside it; accuracy where labels are known.

    ``to`` is RUN/predictions.csv unless given; ``labels=False`` ignores those of the source. Raises LimnerError.
    """
    to = Path(to or checkpoint.folder_of(run) / "predictions.csv")
    if to.suffix not in (".csv", ".json"):
        raise LimnerError(f"Cannot write predictions to {to}: name a .csv or .json file.")
    sheet = to.with_suffix(".png")
    files.refuse_to_replace(to, sources)
    files.refuse_to_replace(sheet, sources, beside=to)
    files.check_writable(to)
    pipeline = open_run(run, Classifies, device)
    data = open_for_run(pipeline, sources, not quiet, labels=labels)
    truth = None if data.labels is None else class_indices(data, pipeline.spec.classes)
    with bar(f"classifying {len(data):,} images", quiet) as watch:
        probabilities = over_data(data, partial(class_probabilities, pipeline), watch)
    best = probabilities.topk(min(TOP, len(pipeline.spec.classes)), dim=1)
    trained_on_these, accuracy = None, None
    if truth is not None:
        trained_on_these = list(sources) == list(pipeline.loaded.run.sources)
        correct = (best.indices[:, 0] == truth)[truth >= 0]
        accuracy = Accuracy.of(correct.double().mean().item(), len(correct))
    predictions = []
    rows = zip(data.names, class_names(data), best.values.tolist(), best.indices.tolist(), strict=True)
    for path, label, values, places in rows:
        top = [ClassProbability(pipeline.spec.classes[i], p) for i, p in zip(places, values, strict=True)]
        predictions.append(Prediction(path, label, top[0].class_, top[0].probability, top))
    result = Classification(
        run=pipeline.digest, n=len(data), trained_on_these=trained_on_these, accuracy=accuracy, to=str(to),
        sheet=str(sheet), predictions=predictions,
    )  # fmt: skip
    _write_predictions(result, data)
    return result


def _write_predictions(result: Classification, data: Data) -> None:
    """The table and the sheet of some images."""
    to, predictions = Path(result.to), result.predictions
    shown = np.sort(data.order(0, min(SHEET, len(data)), 0))  # random: files of one class may come together
    captions, wrong = [predictions[i].caption() for i in shown], [predictions[i].wrong for i in shown]
    with files.together():
        if to.suffix == ".csv":
            columns = ["path", "label", "predicted", "probability"]
            table = io.StringIO(newline="")
            csv.writer(table).writerows([columns, *([getattr(p, c) for c in columns] for p in predictions)])
            files.write_bytes(to, table.getvalue().encode("utf-8", "backslashreplace"))
        else:
            files.write_json(to, result.to_json())
        save_grid(Path(result.sheet), data.batch(shown).image, captions, marked=wrong)


# Searching ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match(JsonResult):
    path: str
    label: str
    similarity: float  # cosine of the features


@dataclass(frozen=True)
class Matches(JsonResult):
    """The images of a source that are most similar to a picture."""

    query: str
    n: int  # images searched
    to: str
    found: list[Match]  # the most similar first


def search(
    run: str | Path, source: str, query: str | Path, n: int = 16, to: str | Path = "search.png", device: str = "auto",
    quiet: bool = False,
) -> Matches:  # fmt: skip
    """The ``n`` images of a source most similar to a picture by the cosine of their features, and a sheet of them.

    Raises LimnerError.
    """
    to, query = Path(to), Path(query)
    if to.suffix.lower() != ".png":
        raise LimnerError(f"Cannot write {to}: name a .png for the sheet.")
    n = checked(Count, n, "--n")
    files.refuse_to_replace(to, [query, source])
    files.check_writable(to)
    if not query.is_file():
        raise LimnerError(f"There is no picture {query}: name the one to search for.")
    pipeline = open_run(run, Describes, device)
    with tempfile.TemporaryDirectory() as cache:  # packed pixels of one picture are not worth keeping
        own = open_for_run(pipeline, [str(query)], False, labels=False, cache=cache)
        if len(own) != 1:
            raise LimnerError(f"{query} holds {len(own)} images: name one picture to search for.")
        picture = own.batch(np.arange(1)).image  # [1, C, H, W], prepared as the images of a source are
    data = open_for_run(pipeline, [source], not quiet)
    with bar(f"describing {len(data):,} images", quiet) as watch:
        features = over_data(data, partial(extract_features, pipeline), watch)
    similarity = F.cosine_similarity(features, extract_features(pipeline, picture))  # [N]
    order = similarity.argsort(descending=True, stable=True)[:n]
    labels = class_names(data)
    found = [Match(data.names[i], labels[i], float(similarity[i])) for i in order.tolist()]
    captions = [f"query: {query.name}", *(f"{match.path} {match.similarity:.3f}" for match in found)]
    save_grid(to, torch.cat([picture, data.batch(order.numpy()).image]), captions, marked=[True])
    return Matches(str(query), len(data), str(to), found)
