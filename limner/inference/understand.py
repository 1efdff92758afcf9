"""What a run makes of images: their features, their classes, and which images are similar."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn import functional as F

from limner import checkpoint, files
from limner.core import Classifies, Describes, LimnerError, nearest
from limner.data import Data, finder
from limner.fields import Count, JsonResult, checked
from limner.inference.networks import (
    class_probabilities,
    extract_features,
    open_for_run,
    open_run,
    over_batches,
    over_data,
    supports,
    unsupported,
)
from limner.inference.pipeline import Pipeline
from limner.inference.texts import (
    embed_classes,
    embed_images,
    embed_texts,
    name_probabilities,
    names_of,
    open_comparer,
)
from limner.metrics import probes
from limner.pictures.grid import save_grid
from limner.progress import bar
from limner.settings import need

__all__ = [
    "Accuracy", "Classification", "Prediction", "class_indices", "class_names", "class_probabilities", "classify",
    "embed", "extract_features", "open_for_run", "open_run", "over_batches", "over_data", "search", "supports",
    "unknown_class", "unsupported",
]  # fmt: skip

SHEET = 64  # images on the sheet of predictions
TOP = 3  # classes kept of each image
ARTICLE = re.compile("(an?|the) ", re.IGNORECASE)


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


def named_indices(data: Data, names: Sequence[str]) -> Tensor:
    """[N] the index of each image's class among ``names`` that a person gives, -1 for none; 'a cat' also names cat."""
    exact, without = finder(names), finder([ARTICLE.sub("", name) for name in names])
    found = {name: exact(name) if exact(name) >= 0 else without(name) for name in set(class_names(data))}
    return torch.tensor([found[name] for name in class_names(data)])


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


class Classifier(NamedTuple):
    """What classifies images: by the classes that a run was trained on, or by names that a person gives."""

    names: Sequence[str]
    probabilities: Callable[[Tensor], Tensor]  # [B, C, H, W] of any size and channels -> [B, K]
    by_names: bool = False


def open_classifier(
    pipeline: Pipeline, labels: bool | str | Sequence[str], templates: Sequence[str]
) -> Classifier:
    """By ``labels``, where they are names. Raises LimnerError."""
    if not isinstance(labels, bool):
        names = names_of(labels)
        classes = embed_classes(pipeline, names, templates)
        return Classifier(names, partial(name_probabilities, pipeline, classes), by_names=True)
    if templates:
        raise LimnerError("--template is for classes that are named: add --labels.")
    return Classifier(pipeline.spec.classes, partial(class_probabilities, pipeline))


def classify(
    run: str | Path, sources: Sequence[str], to: str | Path = "", labels: bool | str | Sequence[str] = True,
    device: str = "auto", quiet: bool = False, templates: Sequence[str] = (),
) -> Classification:  # fmt: skip
    """The class of every image, in a .csv or .json file and on a sheet beside it; accuracy where labels are known.

    ``to`` is RUN/predictions.csv unless given; ``labels=False`` ignores those of the source. Where ``labels`` are
    names, as a list or with commas between them, the classes are these, of which the run need know no image:
    it must compare images with texts. ``templates`` say them in several ways, as 'a picture of {}', and their mean
    counts. Raises LimnerError.
    """
    to = Path(to or checkpoint.folder_of(run) / "predictions.csv")
    if to.suffix not in (".csv", ".json"):
        raise LimnerError(f"Cannot write predictions to {to}: name a .csv or .json file.")
    sheet = to.with_suffix(".png")
    files.refuse_to_replace(to, sources)
    files.refuse_to_replace(sheet, sources, beside=to)
    files.check_writable(to)
    pipeline = open_run(run, Classifies, device) if isinstance(labels, bool) else open_comparer(run, device)
    by = open_classifier(pipeline, labels, templates)
    data = open_for_run(pipeline, sources, not quiet, labels=labels is not False)
    truth = None if data.labels is None else (named_indices if by.by_names else class_indices)(data, by.names)
    with bar(f"classifying {len(data):,} images", quiet) as watch:
        probabilities = over_data(data, by.probabilities, watch)
    best = probabilities.topk(min(TOP, len(by.names)), dim=1)
    trained_on_these, accuracy = None, None
    if truth is not None and bool((truth >= 0).any()):
        trained_on_these = list(sources) == list(pipeline.loaded.run.sources)
        correct = (best.indices[:, 0] == truth)[truth >= 0]
        accuracy = Accuracy.of(correct.double().mean().item(), len(correct))
    predictions = []
    rows = zip(data.names, class_names(data), best.values.tolist(), best.indices.tolist(), strict=True)
    for path, label, values, places in rows:
        top = [ClassProbability(by.names[i], p) for i, p in zip(places, values, strict=True)]
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
    """The images of a source that are most similar to a picture, or fit a text best."""

    query: str
    n: int  # images searched
    to: str
    found: list[Match]  # the most similar first


def search(
    run: str | Path, source: str, query: str | Path = "", n: int = 16, to: str | Path = "search.png",
    device: str = "auto", quiet: bool = False, text: str = "",
) -> Matches:  # fmt: skip
    """The ``n`` images of a source most similar to a picture by the cosine of their features, and a sheet of them.

    With ``text`` in place of a picture those that show what it says, by a run that compares images with texts.
    Raises LimnerError.
    """
    to = Path(to)
    if to.suffix.lower() != ".png":
        raise LimnerError(f"Cannot write {to}: name a .png for the sheet.")
    n = checked(Count, n, "--n")
    if bool(str(query)) == bool(text.strip()):
        raise LimnerError("Name what to search for, and one thing only: a picture, or --text with words.")
    files.refuse_to_replace(to, [source, *([query] if query else [])])
    files.check_writable(to)
    asked = _words(run, text, device) if text.strip() else _picture(run, Path(query), device)
    data = open_for_run(asked.pipeline, [source], not quiet)
    with bar(f"describing {len(data):,} images", quiet) as watch:
        features = over_data(data, partial(asked.describe, asked.pipeline), watch)
    similarity = F.cosine_similarity(features, asked.features)  # [N]
    order = similarity.argsort(descending=True, stable=True)[:n]
    labels = class_names(data)
    found = [Match(data.names[i], labels[i], float(similarity[i])) for i in order.tolist()]
    captions = [f"{match.path} {match.similarity:.3f}" for match in found]
    images = data.batch(order.numpy()).image
    if asked.picture is None:
        save_grid(to, images, captions)
    else:
        shown = torch.cat([asked.picture, images])
        save_grid(to, shown, [f"query: {Path(query).name}", *captions], marked=[True])
    return Matches(text or str(query), len(data), str(to), found)


class Query(NamedTuple):
    """What is searched for, and what describes images in the same space."""

    pipeline: Pipeline
    features: Tensor  # [1, D]
    describe: Callable[[Pipeline, Tensor], Tensor]  # images [B, C, H, W] -> [B, D]
    picture: Tensor | None = None  # [1, C, H, W]


def _words(run: str | Path, text: str, device: str) -> Query:
    pipeline = open_comparer(run, device)
    return Query(pipeline, embed_texts(pipeline, [text]), embed_images)


def _picture(run: str | Path, query: Path, device: str) -> Query:
    """Raises LimnerError unless it is one picture."""
    if not query.is_file():
        raise LimnerError(f"There is no picture {query}: name the one to search for, or words with --text.")
    pipeline = open_run(run, Describes, device)
    with tempfile.TemporaryDirectory() as cache:  # packed pixels of one picture are not worth keeping
        own = open_for_run(pipeline, [str(query)], False, labels=False, cache=cache)
        if len(own) != 1:
            raise LimnerError(f"{query} holds {len(own)} images: name one picture to search for.")
        picture = own.batch(np.arange(1)).image  # [1, C, H, W], prepared as the images of a source are
    return Query(pipeline, extract_features(pipeline, picture), extract_features, picture)
