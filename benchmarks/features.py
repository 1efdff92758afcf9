"""Do features see what an image shows? How often the nearest neighbour of an image has its class.

    python benchmarks/features.py landscapes sprites stamps food --record

Each name is a folder of images with a class each (subfolders, or labels in its metadata.jsonl). Of each, ``--n``
random images are resized to ``--size`` pixels, and each one's nearest neighbour among the others is found in random
features and in those of limner[imagenet]. Time is that of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from record import record
from torch import Tensor

from limner.data import open_data
from limner.inference.understand import Accuracy
from limner.metrics.features import Features
from limner.metrics.find import find

BATCH = 64


def describe(features: Features, images: Tensor) -> tuple[Tensor, float]:
    """The features [N, D], and milliseconds an image."""
    features.of(images[:4])  # the first call is slower
    start = time.process_time()
    found = torch.cat([features.of(batch) for batch in images.split(BATCH)])
    return found, 1000 * (time.process_time() - start) / len(images)


def nearest_accuracy(features: Tensor, labels: Tensor) -> list[float]:
    """The share, in percent, whose nearest neighbour has their label, with Wilson's interval."""
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.fill_diagonal_(float("inf")).argmin(1)
    found = Accuracy.of((labels[nearest] == labels).double().mean().item(), len(labels))
    return [round(100 * share, 1) for share in (found.value, found.low, found.high)]


def measure(folder: str, size: int, n: int) -> dict[str, object]:
    data = open_data(folder, size=(size, size))
    if data.labels is None:
        raise SystemExit(f"{folder} has no classes")
    rows = data.order(0, min(n, len(data)), 0)
    rows = rows[data.labels[rows] >= 0]
    images = torch.cat([data.batch(rows[at : at + BATCH]).image for at in range(0, len(rows), BATCH)])
    labels = torch.from_numpy(data.labels[rows])
    chance = 100 * float((labels.bincount() / len(labels)).square().sum())
    row: dict[str, object] = {"data": Path(folder).name, "images": len(rows), "channels": data.spec.channels}
    row |= {"classes": len(labels.unique()), "chance": round(chance, 1)}
    for name in ("random", "imagenet"):
        features, milliseconds = describe(find(name), images)
        row |= {name: nearest_accuracy(features, labels), f"{name}_ms": round(milliseconds, 2)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--n", type=int, default=1000, help="images of each folder, at most")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/features.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for folder in given.folders:
        rows.append(measure(folder, given.size, given.n))
        print(rows[-1], flush=True)
    if given.record:
        columns = {
            "data": "images", "images": "n", "classes": "classes", "chance": "chance, %",
            "random": "random, % (95%)", "imagenet": "imagenet, % (95%)",
            "random_ms": "random, ms an image", "imagenet_ms": "imagenet, ms an image",
        }  # fmt: skip
        names = " ".join(Path(folder).name for folder in given.folders)
        command = f"python benchmarks/features.py {names} --n {given.n} --size {given.size} --record"
        note = (
            f"Share of images whose nearest neighbour has their class, of at most {given.n:,} random ones at "
            f"{given.size}x{given.size}; those with transparency are described twice"
        )
        print(f"Written: {record('features', columns, rows, note, 1, command)}")


if __name__ == "__main__":
    main()
