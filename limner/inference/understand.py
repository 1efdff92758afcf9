"""What a run makes of images: their features, their classes, and which are alike."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limner import checkpoint, families, files
from limner.core import Classifies, Describes, LimnerError, nearest
from limner.data import Data, batches, open_like
from limner.device import autocast
from limner.distributed import ALONE, Ranks
from limner.inference.pipeline import Pipeline
from limner.metrics import probes
from limner.metrics.features import resize, with_channels
from limner.pictures.grid import grid
from limner.progress import bar

SHEET = 64  # images on the sheet of predictions
TOP = 3  # classes told of each image

Watch = Callable[[float], None]
Count = Callable[[int], None]


# Networks over images -----------------------------------------------------------------------------------


def load(run: str | Path, protocol: type, device: str = "auto") -> Pipeline:
    """A run that Describes, or Classifies; known before any image is read. Raises LimnerError for another."""
    pipeline = Pipeline(run, device)
    if not can(pipeline, protocol):
        raise refusal(pipeline, protocol)
    return pipeline


def can(pipeline: Pipeline, protocol: type) -> bool:
    """Whether a run Describes, or Classifies, which takes classes that it was trained on."""
    return isinstance(pipeline.model, protocol) and (protocol is Describes or bool(pipeline.spec.classes))


def refusal(pipeline: Pipeline, protocol: type) -> LimnerError:
    what = "describe images" if protocol is Describes else "classify images"
    able = [name for name in families.names() if issubclass(families.load(name), protocol)]
    run = pipeline.loaded.run
    if run.family in able:  # it could, had it been trained on labels
        return LimnerError(
            f"{pipeline.loaded.path} was trained without labels and cannot {what}: use a run with."
        )
    names = " or ".join([", ".join(able[:-1]), able[-1]] if able[1:] else able)
    instead = f"use a run of {names}" if able else "no family here does"
    return LimnerError(f"{pipeline.loaded.path} is a run of {run.family}, which does not {what}: {instead}.")


def describe(pipeline: Pipeline, images: Iterable[Tensor], watch: Count | None = None) -> Tensor:
    """Batches [B, C, H, W] of any size and channels -> features, float32 [N, D] on the CPU."""
    assert isinstance(pipeline.model, Describes)
    return _apply(pipeline, pipeline.model.features, images, watch)


def probabilities(pipeline: Pipeline, images: Iterable[Tensor], watch: Count | None = None) -> Tensor:
    """Batches [B, C, H, W] of any size and channels -> how probable each class is, float64 [N, K] on the CPU."""
    assert isinstance(pipeline.model, Classifies)
    return _apply(pipeline, pipeline.model.classify, images, watch).double().softmax(1)


def _apply(
    pipeline: Pipeline, network: Callable[[Tensor], Tensor], images: Iterable[Tensor], watch: Count | None
) -> Tensor:
    device, spec, found, done = pipeline.model.device, pipeline.spec, [], 0
    with torch.inference_mode(), autocast(device, pipeline.precision):
        for image in images:
            image = resize(with_channels(image, spec.channels), spec.height, spec.width)
            found.append(network(image.to(device)).float().cpu())
            done += len(image)
            if watch:
                watch(done)
    return torch.cat(found)


def over(
    data: Data,
    network: Callable[[Iterable[Tensor], Count | None], Tensor],
    watch: Watch | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """[N, ...] what a network finds in each image: batches stream, and each process looks at its share."""
    mine = data.part(np.arange(len(data))[ranks.part(len(data))])
    count = (lambda done: watch(done / len(mine))) if watch else None
    return ranks.gather(network(batches(mine), count), len(data))


def open_seen(pipeline: Pipeline, sources: Sequence[str], progress: bool = True, **changes: Any) -> Data:
    """Sources as the run sees images, with their labels even if it was trained without."""
    options = {"labels": True, **changes}
    return open_like(sources, pipeline.spec, pipeline.loaded.run.data, progress, **options)


def share(value: float, n: int) -> dict[str, Any]:
    """A share of ``n`` images with its interval."""
    low, high = probes.wilson(value, n)
    return {"value": value, "low": low, "high": high, "n": n}


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
    pipeline = load(run, Describes, device)
    data = open_seen(pipeline, sources, not quiet)
    with bar(f"describing {len(data):,} images", quiet) as watch:
        features = over(data, partial(describe, pipeline), watch)
    with files.whole(to) as unfinished:
        write(unfinished, data.names, names_of_labels(data), features.numpy())
    digest = pipeline.loaded.header.get("digest", "")
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
    to = Path(to or checkpoint.folder_of(run) / "predictions.csv")
    if to.suffix not in (".csv", ".json"):
        raise LimnerError(f"Cannot write predictions to {to}: name a .csv or .json file.")
    pipeline = load(run, Classifies, device)
    classes = pipeline.spec.classes
    data = open_seen(pipeline, sources, not quiet, labels=labels)
    truth = None if data.labels is None else labels_among(data, classes)
    with bar(f"classifying {len(data):,} images", quiet) as watch:
        best = over(data, partial(probabilities, pipeline), watch).topk(min(TOP, len(classes)), dim=1)

    predictions: list[dict[str, Any]] = []
    found = zip(data.names, names_of_labels(data), best.values.tolist(), best.indices.tolist(), strict=True)
    for name, label, values, places in found:
        top = [{"class": classes[i], "probability": p} for i, p in zip(places, values, strict=True)]
        first = {"predicted": classes[places[0]], "probability": values[0]}
        predictions.append({"path": name, "label": label, **first, "top": top})
    told: dict[str, Any] = {"run": pipeline.loaded.header.get("digest", ""), "n": len(data)}
    if truth is not None:
        told["trained_on_these"] = list(sources) == list(pipeline.loaded.run.sources)
        told["accuracy"] = share((best.indices[:, 0] == truth).double().mean().item(), len(data))
    sheet = to.with_suffix(".png")
    told |= {"to": str(to), "sheet": str(sheet), "predictions": predictions}
    if to.suffix == ".csv":
        with files.whole(to) as unfinished:
            _write_csv(unfinished, predictions)
    else:
        files.write_json(to, told)
    rows = np.sort(
        data.order(0, min(SHEET, len(data)), 0)
    )  # from all over the source, not of its first class
    shown = [predictions[i] for i in rows]
    with files.whole(sheet) as unfinished:
        words, wrong = [in_words(p) for p in shown], [is_wrong(p) for p in shown]
        grid(data.batch(rows).image, words, marked=wrong).save(unfinished, "PNG")
    return told


def is_wrong(prediction: dict[str, Any]) -> bool:
    return prediction["label"] not in ("", prediction["predicted"])


def in_words(prediction: dict[str, Any]) -> str:
    """'cat, 97%', and what it is where that is wrong."""
    truth = f" (is {prediction['label']})" if is_wrong(prediction) else ""
    return f"{prediction['predicted']}, {prediction['probability']:.0%}{truth}"


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
    pipeline = load(run, Describes, device)
    with tempfile.TemporaryDirectory() as cache:  # one picture's pixels are not worth keeping
        asked = open_seen(pipeline, [str(query)], False, labels=False, cache=cache)
        if len(asked) != 1:
            raise LimnerError(f"{query} holds {len(asked)} images: name one picture to search for.")
        picture = asked.batch(np.arange(1)).image
        wanted = describe(pipeline, [picture])
    data = open_seen(pipeline, [source], not quiet)
    with bar(f"describing {len(data):,} images", quiet) as watch:
        alike = F.cosine_similarity(over(data, partial(describe, pipeline), watch), wanted)  # [N]
    order = alike.argsort(descending=True, stable=True)[:n]
    labels = names_of_labels(data)
    found = [
        {"path": data.names[i], "label": labels[i], "similarity": float(alike[i])} for i in order.tolist()
    ]
    words = [f"{row['path']} {row['similarity']:.3f}" for row in found]
    with files.whole(to) as unfinished:
        images = torch.cat([picture, data.batch(order.numpy()).image])
        grid(images, [f"query: {query.name}", *words], marked=[True]).save(unfinished, "PNG")
    return {"query": str(query), "n": len(data), "to": str(to), "found": found}


# Files --------------------------------------------------------------------------------------------------


def _write_npz(path: Path, names: list[str], labels: list[str], features: np.ndarray) -> None:
    with open(path, "wb") as file:  # by name NumPy would add a suffix
        np.savez(file, path=np.array(names, np.str_), label=np.array(labels, np.str_), features=features)


def _write_safetensors(path: Path, names: list[str], labels: list[str], features: np.ndarray) -> None:
    from safetensors.numpy import save_file

    lists = {"path": json.dumps(names, ensure_ascii=False), "label": json.dumps(labels, ensure_ascii=False)}
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
