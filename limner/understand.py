"""What a run makes of images: their features, their classes, which are alike; and how right it is."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from limner import families
from limner.core import Classifies, Describes, LimnerError, nearest
from limner.data import Data, grid, open_data
from limner.device import autocast
from limner.metrics import probes
from limner.sample import Painter, bar

BATCH = 64
SHEET = 64  # images on the sheet of predictions
TOP = 3  # classes told of each image
DRAWS = 5  # random choices of few labelled images

Watch = Callable[[float], None]


# Networks over sources ----------------------------------------------------------------------------------


def open_source(
    painter: Painter, sources: Sequence[str], labels: bool = True, progress: bool = True, cache: str = ""
) -> Data:
    """Sources as the run sees images: at its size and channels, cropped or padded as it was trained."""
    spec, options = painter.spec, painter.loaded.run.data
    options = replace(
        options, channels=spec.channels, labels=labels, per_class=0, cache=cache or options.cache
    )  # type: ignore[arg-type]
    return open_data(sources, size=(spec.height, spec.width), options=options, progress=progress)


def describe(painter: Painter, data: Data, watch: Watch | None = None) -> Tensor:
    """The features of every image, float32 [N, D] on the CPU; images stream. Raises LimnerError."""
    model = painter.model
    if not isinstance(model, Describes):
        raise _refusal(painter, "describe images", Describes)
    return _over(painter, model.features, data, watch)


def probabilities(painter: Painter, data: Data, watch: Watch | None = None) -> Tensor:
    """How probable each class of the run is for every image, [N, K] on the CPU. Raises LimnerError."""
    model = painter.model
    if not (isinstance(model, Classifies) and painter.spec.classes):
        raise _refusal(painter, "classify images", Classifies)
    return _over(painter, model.classify, data, watch).softmax(1)


def _over(
    painter: Painter, network: Callable[[Tensor], Tensor], data: Data, watch: Watch | None = None
) -> Tensor:
    device, found = painter.model.device, []
    with torch.inference_mode(), autocast(device, painter.precision):
        for at in range(0, len(data), BATCH):
            rows = np.arange(at, min(at + BATCH, len(data)))
            found.append(network(data.batch(rows).image.to(device)).float().cpu())
            if watch:
                watch((at + len(rows)) / len(data))
    return torch.cat(found)


def _refusal(painter: Painter, what: str, protocol: type) -> LimnerError:
    able = [name for name in families.names() if issubclass(families.load(name), protocol)]
    run = painter.loaded.run
    if run.family in able:  # it could, had it been trained on labels
        return LimnerError(
            f"{painter.loaded.path} was trained without labels and cannot {what}: use a run with."
        )
    instead = f"use a run of {' or '.join(able)}" if able else "no family here does"
    return LimnerError(f"{painter.loaded.path} is a run of {run.family}, which does not {what}: {instead}.")


def names_of_labels(data: Data) -> list[str]:
    """Each image's class, '' where the data has none."""
    return [""] * len(data) if data.labels is None else [data.spec.classes[i] for i in data.labels]


def unknown_class(data: Data, classes: Sequence[str]) -> str | None:
    """A class of the data that is not among ``classes``, if there is one."""
    return next((name for name in sorted(set(names_of_labels(data))) if name and name not in classes), None)


def labels_among(data: Data, classes: Sequence[str]) -> Tensor:
    """[N] each image's place in ``classes``, by its name. Raises LimnerError for a class that is not there."""
    if (name := unknown_class(data, classes)) is not None:
        raise LimnerError(
            f"The run knows no class {name!r} of these images.{nearest(name, classes)} It knows "
            f"{', '.join(classes[:12])}: rename the folders, or leave the labels unread with --no-labels."
        )
    place = {name: i for i, name in enumerate(classes)}
    return torch.tensor([place[name] for name in names_of_labels(data)])


# The commands -------------------------------------------------------------------------------------------


def embed(
    run: str | Path, sources: Sequence[str], to: str | Path, device: str = "auto", quiet: bool = False
) -> dict[str, Any]:
    """Write every image's name, label ('' for none) and features [D] to a .npz, .safetensors or .parquet file.

    In npz and parquet they are ``path``, ``label`` and ``features``; in safetensors the names and labels are JSON
    lists in the metadata. Raises LimnerError.
    """
    to = Path(to)
    write = {".npz": _write_npz, ".safetensors": _write_safetensors, ".parquet": _write_parquet}.get(
        to.suffix
    )
    if write is None:
        raise LimnerError(f"Cannot write features to {to}: name a .npz, .safetensors or .parquet file.")
    if to.suffix == ".parquet":
        _pyarrow()  # say what is missing before the work
    painter = _painter(run, device, Describes, "describe images")
    data = open_source(painter, sources, progress=not quiet)
    with bar(f"describing {len(data):,} images", quiet) as watch:
        features = describe(painter, data, watch)
    with _whole(to) as unfinished:
        write(unfinished, data.names, names_of_labels(data), features.numpy())
    digest = painter.loaded.header.get("digest", "")
    n, width = features.shape
    return {"run": digest, "n": n, "features": width, "labels": len(data.spec.classes), "to": str(to)}


def classify(
    run: str | Path,
    sources: Sequence[str],
    to: str | Path = "",
    labels: bool = True,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """The class of every image, in a .csv or .json file and on a sheet beside it; accuracy where labels are known.

    ``to`` is RUN/predictions.csv unless given; ``labels`` are those of the source. Raises LimnerError.
    """
    to = Path(to or _folder(run) / "predictions.csv")
    if to.suffix not in (".csv", ".json"):
        raise LimnerError(f"Cannot write predictions to {to}: name a .csv or .json file.")
    painter = _painter(run, device, Classifies, "classify images")
    classes = painter.spec.classes
    data = open_source(painter, sources, labels, progress=not quiet)
    truth = None if data.labels is None else labels_among(data, classes)
    with bar(f"classifying {len(data):,} images", quiet) as watch:
        best = probabilities(painter, data, watch).topk(min(TOP, len(classes)), dim=1)

    predictions: list[dict[str, Any]] = []
    found = zip(data.names, names_of_labels(data), best.values.tolist(), best.indices.tolist(), strict=True)
    for name, label, values, places in found:
        top = [{"class": classes[i], "probability": p} for i, p in zip(places, values, strict=True)]
        predictions.append(
            {
                "path": name,
                "label": label,
                "predicted": classes[places[0]],
                "probability": values[0],
                "top": top,
            }
        )
    told: dict[str, Any] = {"run": painter.loaded.header.get("digest", ""), "n": len(data)}
    if truth is not None:
        told["accuracy"] = _share((best.indices[:, 0] == truth).double().mean().item(), len(data))
    sheet = to.with_suffix(".png")
    told |= {"to": str(to), "sheet": str(sheet), "predictions": predictions}
    with _whole(to) as unfinished:
        if to.suffix == ".csv":
            _write_csv(unfinished, predictions)
        else:
            unfinished.write_text(json.dumps(told, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    first = predictions[:SHEET]
    with _whole(sheet) as unfinished:
        images = data.batch(np.arange(len(first))).image
        grid(images, [in_words(p) for p in first]).save(unfinished, "PNG")
    return told


def in_words(prediction: dict[str, Any]) -> str:
    """'cat 97%', and what it is where that is wrong."""
    wrong = prediction["label"] not in ("", prediction["predicted"])
    return f"{prediction['predicted']} {prediction['probability']:.0%}" + (
        f" (is {prediction['label']})" if wrong else ""
    )


def search(
    run: str | Path,
    source: str,
    query: str | Path,
    n: int = 16,
    to: str | Path = "search.png",
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """The ``n`` images of a source nearest to a picture by the cosine of their features, on a sheet behind it.

    Raises LimnerError.
    """
    to, query = Path(to), Path(query)
    if to.suffix.lower() != ".png":
        raise LimnerError(f"Cannot write {to}: name a .png for the sheet.")
    if n < 1:
        raise LimnerError(f"Cannot find {n} images: ask for at least one.")
    if not query.is_file():
        raise LimnerError(f"There is no picture {query}: name the one to search for.")
    painter = _painter(run, device, Describes, "describe images")
    with tempfile.TemporaryDirectory() as cache:  # one picture's pixels are not worth keeping
        asked = open_source(painter, [str(query)], labels=False, progress=False, cache=cache)
        if len(asked) != 1:
            raise LimnerError(f"{query} holds {len(asked)} images: name one picture to search for.")
        picture, wanted = asked.batch(np.arange(1)).image, describe(painter, asked)
    data = open_source(painter, [source], progress=not quiet)
    with bar(f"describing {len(data):,} images", quiet) as watch:
        alike = F.cosine_similarity(describe(painter, data, watch), wanted)  # [N]
    order = alike.argsort(descending=True, stable=True)[:n]
    labels = names_of_labels(data)
    found = [
        {"path": data.names[i], "label": labels[i], "similarity": float(alike[i])} for i in order.tolist()
    ]
    words = [f"{row['path']} {row['similarity']:.3f}" for row in found]
    with _whole(to) as unfinished:
        images = torch.cat([picture, data.batch(order.numpy()).image])
        grid(images, [f"query: {query.name}", *words]).save(unfinished, "PNG")
    return {"query": str(query), "n": len(data), "to": str(to), "found": found}


def _painter(run: str | Path, device: str, protocol: type, what: str) -> Painter:
    """A run that can do what is wanted of it, known before any image is read."""
    painter = Painter(run, device)
    if not isinstance(painter.model, protocol) or (protocol is Classifies and not painter.spec.classes):
        raise _refusal(painter, what, protocol)
    return painter


def _folder(run: str | Path) -> Path:
    return Path(run) if Path(run).is_dir() else Path(run).parent


# Measuring ----------------------------------------------------------------------------------------------


def measure(
    painter: Painter,
    sources: Sequence[str],
    training: Data,
    held_out: Data,
    per_class: int = 0,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """How much of the held-out images' labels a run has understood; {} where it cannot say or there are none.

    ``knn_accuracy`` and ``probe_accuracy`` of its features, taught by the training part's labels; with
    ``per_class`` also ``few_probe_accuracy``, taught by so many of each class; ``accuracy`` of its own classes.
    Labels are read also of a run that was trained without them: they measure, they do not train. Raises LimnerError.
    """
    model, told = painter.model, dict[str, Any]()
    describes, classifies = (
        isinstance(model, Describes),
        isinstance(model, Classifies) and painter.spec.classes,
    )
    if per_class < 0 or (per_class and not describes):
        if describes:
            raise LimnerError(f"Cannot probe with {per_class} labelled images a class: ask for at least one.")
        raise _refusal(painter, "describe images", Describes)
    if not (describes or classifies):
        return {}
    training, held_out = with_labels(painter, sources, [training, held_out], progress=not quiet)
    if training.labels is None or held_out.labels is None or not len(held_out):
        if per_class:
            raise LimnerError(f"There is nothing to probe with: {why_not(held_out)}.")
        return {}
    if describes:
        with bar(f"describing {len(training) + len(held_out):,} images", quiet) as watch:
            share = len(training) / (len(training) + len(held_out))
            x = describe(painter, training, lambda done: watch(share * done))
            y = describe(painter, held_out, lambda done: watch(share + (1 - share) * done))
        known, n = (x, torch.from_numpy(training.labels), y, torch.from_numpy(held_out.labels)), len(y)
        with bar("probing", quiet) as watch:
            told["knn_accuracy"] = _share(probes.knn_accuracy(*known), n)
            watch(0.2)
            told["probe_accuracy"] = _share(probes.probe_accuracy(*known), n)
            watch(0.6)
            if per_class:
                mean, spread = probes.few_probe_accuracy(*known, per_class, DRAWS, seed)
                few = {"value": mean, "spread": spread, "n": n, "labels_per_class": per_class, "draws": DRAWS}
                told["few_probe_accuracy"] = few
    if classifies:
        if describes and (name := unknown_class(held_out, painter.spec.classes)):
            warnings.warn(f"The run knows no class {name!r}: only its features are measured.", stacklevel=2)
        else:
            truth = labels_among(held_out, painter.spec.classes)
            with bar(f"classifying {len(held_out):,} images", quiet) as watch:
                right = probabilities(painter, held_out, watch).argmax(1) == truth
            told["accuracy"] = _share(right.double().mean().item(), len(held_out))
    return told


def with_labels(
    painter: Painter, sources: Sequence[str], parts: Sequence[Data], progress: bool = True
) -> list[Data]:
    """Parts of what the run sees of a source, with their labels even if it was trained without.

    The parts stay those that training made: labels, had they been read, would have split the source otherwise.
    """
    if painter.loaded.run.data.labels:
        return list(parts)
    whole = open_source(painter, sources, progress=progress)
    if whole.labels is None:
        return list(parts)
    for part in parts:
        if part.rows.max(initial=-1) >= len(whole) or [whole.names[i] for i in part.rows] != part.names:
            raise LimnerError(f"The images in {', '.join(sources)} changed meanwhile: run it again.")
    return [
        replace(part, labels=whole.labels[part.rows], spec=replace(part.spec, classes=whole.spec.classes))
        for part in parts
    ]


def why_not(held_out: Data) -> str:
    """Why labels measure nothing here, and what to do."""
    if not len(held_out):
        return (
            "no image is held out to measure on, which takes 20 images and a share --data.holdout in training"
        )
    return "these images have no labels, put them into one folder a class"


def _share(value: float, n: int) -> dict[str, Any]:
    low, high = probes.wilson(value, n)
    return {"value": value, "low": low, "high": high, "n": n}


ABOUT = {
    "accuracy": "accuracy of its classes",
    "knn_accuracy": "accuracy of its features' 20 nearest",
    "probe_accuracy": "accuracy of a linear probe",
}


def rows(told: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What ``measure`` found as lines of evaluate's table."""
    table = []
    for name, about in ABOUT.items():
        if name in told:
            v = told[name]
            interval = f"{v['low']:.1%} to {v['high']:.1%}"
            table.append((f"{about}, {v['n']:,} held out", f"{v['value']:.1%}", interval, ""))
    if "few_probe_accuracy" in told:
        v = told["few_probe_accuracy"]
        about = f"the same from {v['labels_per_class']} labels a class, {v['draws']} draws"
        table.append((about, f"{v['value']:.1%} ± {v['spread']:.1%}", "", ""))
    return table


# Files --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write to that becomes ``path`` when all is written: it is there whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LimnerError(f"{path} cannot be written ({reason}): make room, or name another place.") from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def _write_npz(path: Path, names: list[str], labels: list[str], features: np.ndarray) -> None:
    with open(path, "wb") as file:  # by name NumPy would add a suffix
        np.savez(file, path=np.array(names, np.str_), label=np.array(labels, np.str_), features=features)


def _write_safetensors(path: Path, names: list[str], labels: list[str], features: np.ndarray) -> None:
    from safetensors.numpy import save_file

    lists = {
        name: json.dumps(words, ensure_ascii=False) for name, words in (("path", names), ("label", labels))
    }
    save_file({"features": features}, path, metadata=lists)


def _write_parquet(path: Path, names: list[str], labels: list[str], features: np.ndarray) -> None:
    pyarrow = _pyarrow()
    import pyarrow.parquet as pq

    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), features.shape[1])
    pq.write_table(pyarrow.table({"path": names, "label": labels, "features": vectors}), path)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise LimnerError("Parquet files need the data extra: pip install 'limner[data]'.") from None
    return pyarrow


def _write_csv(path: Path, predictions: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", "label", "predicted", "probability"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(predictions)
