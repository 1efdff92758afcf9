"""Which changed copies does `evaluate` find, and how often does a perfect generator leave its interval?

    python benchmarks/copies.py [SOURCE...] [--count 100] [--record]

Of each source, most images count as training images; of the rest, 300 are held out, and the others are what a perfect
generator draws. Copies of ``--count`` training images are changed in one way each. A copy is found if it is as near
to a training image as 5% of the held-out images. For the interval, held-out images and drawn ones are chosen anew
many times from the images that were not trained on.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance
from record import record
from torch import Tensor

from limner.data import Data, open_data
from limner.data.twins import find_twins
from limner.evaluation.real import as_bytes
from limner.metrics import memorised
from limner.metrics.copies import Originals

Picture = Image.Image
HELD_OUT = (21, 90, 300)
TRIALS = 1000
COLUMNS = {
    "source": "images", "real": "training images", "unchanged": "unchanged", "mirrored": "mirrored",
    "moved": "moved by up to 4 pixels", "cropped": "cropped to 90%", "brightness": "brightness ±20%",
    "contrast": "contrast ±20%", "jpeg": "JPEG 50", "least": "least of these", "threshold": "threshold, grey levels",
    **{f"interval_{h}": f"perfect generators in their interval, {h} held out" for h in HELD_OUT},
    "ms": "ms an image, processor time",
}  # fmt: skip


def jpeg(image: Picture, rng: np.random.Generator) -> Picture:
    image.save(file := io.BytesIO(), "JPEG", quality=50)
    return Image.open(file)


def crop(image: Picture, rng: np.random.Generator) -> Picture:
    width, height = (round(0.9 * side) for side in image.size)
    left, top = (
        int(rng.integers(0, side - part + 1)) for side, part in zip(image.size, (width, height), strict=True)
    )
    way = Image.Resampling(int(rng.choice([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])))
    return image.crop((left, top, left + width, top + height)).resize(image.size, way)


def move(image: Picture, rng: np.random.Generator) -> Picture:
    """The edge is repeated, mirrored or black."""
    right, down = 0, 0
    while not (right or down):
        right, down = (int(v) for v in rng.integers(-4, 5, 2))
    pixels = np.asarray(image)
    sides = [(4, 4), (4, 4), (0, 0)][: pixels.ndim]
    padded = np.pad(pixels, sides, mode=str(rng.choice(["edge", "reflect", "constant"])))  # type: ignore[call-overload]
    return Image.fromarray(padded[4 - down :, 4 - right :][: image.height, : image.width])


def tone(enhancer: Callable[[Picture], ImageEnhance._Enhance]) -> Callable[..., Picture]:
    return lambda image, rng: enhancer(image).enhance(float(rng.choice([0.8, 1.2])))


CHANGES: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "unchanged": lambda image, rng: image,
    "mirrored": lambda image, rng: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "moved": move, "cropped": crop, "brightness": tone(ImageEnhance.Brightness),
    "contrast": tone(ImageEnhance.Contrast), "jpeg": jpeg,
}  # fmt: skip


def changed(images: Tensor, change: Callable[..., Picture], seed: int = 0) -> Tensor:
    """[N, 1 or 3, H, W], each changed."""
    rng = np.random.default_rng(seed)
    pictures = (Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in as_bytes(images))
    arrays = np.stack([np.asarray(change(picture, rng)) for picture in pictures])
    arrays = arrays if arrays.ndim == 4 else arrays[..., None]
    return torch.from_numpy(arrays.copy()).movedim(-1, 1) / 127.5 - 1


def measure(data: Data, count: int) -> dict[str, float | list[float]]:
    rows = np.random.default_rng(0).permutation(len(data))
    others = rows[: min(1000, len(rows) // 3)]
    training = rows[len(others) :]
    others = others[~find_twins(data.pixels, data.rows[others], data.rows[training])]
    images = data.batch(training).image
    began = time.process_time()
    originals = Originals(images)
    distance = originals.nearest(data.batch(others).image).distance
    seconds = (time.process_time() - began) / len(others)
    limit = memorised.threshold(distance[:300])
    row: dict[str, float | list[float]] = {
        "real": len(training),
        "threshold": round(limit, 1),
        "ms": round(1000 * seconds, 1),
    }
    for name, change in CHANGES.items():
        found = originals.nearest(changed(images[:count], change)).distance <= limit
        row[name] = round(float(found.double().mean()), 3)
    row["least"] = min(row[name] for name in CHANGES)  # type: ignore[type-var]
    for h in HELD_OUT:
        row[f"interval_{h}"] = coverage(distance, h)
    return row


def coverage(distance: Tensor, held_out: int) -> float:
    """The share of trials whose share of memorised images lies in the interval of perfect generators."""
    generator, inside = torch.Generator().manual_seed(held_out), 0
    for _ in range(TRIALS):
        order = torch.randperm(len(distance), generator=generator)
        mine, drawn = distance[order[:held_out]], distance[order[held_out:]]
        found = memorised.memorised(drawn, mine, {})
        inside += found.expected_low <= found.value <= found.expected_high
    return round(inside / TRIALS, 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", default=["digits", "emoji", "shapes"])
    parser.add_argument("--count", type=int, default=100, help="copies of each kind")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/copies.json")
    given = parser.parse_args()
    memorised.SIMULATIONS = 5000
    rows = []
    for source in given.sources:
        data = open_data(source, size=(32, 32), progress=False)
        rows.append({"source": source.rstrip("/").split("/")[-1], **measure(data, given.count)})
        print(rows[-1], flush=True)
    if given.record:
        record("copies", COLUMNS, rows, note=f"{given.count} copies of each kind at 32x32")


if __name__ == "__main__":
    main()
