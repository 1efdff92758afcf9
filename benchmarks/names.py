"""How emoji are drawn from names that a run never saw, in English and in Chinese.

    python benchmarks/names.py runs/dalle runs/flow --comparer runs/clip --sheets docs --record

Each name is drawn with seed 0. The score is CLIP's: 100 times the cosine of the image and its text, by a run that
compares them; beside it that of the same images with each other's names, and of the real images with their own. With
``--sheets``, 64 names: what was drawn, then the nearest training image. KID is with the held-out images themselves.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from record import record
from torch import Tensor
from torch.nn import functional as F

from limner.core import Condition
from limner.data import Data
from limner.data.open import open_like
from limner.evaluation.images import Images
from limner.evaluation.matches import mean_of, shuffled
from limner.evaluation.real import as_saved
from limner.inference.pipeline import Pipeline, generate
from limner.inference.texts import embed_images, embed_texts, open_comparer
from limner.metrics import distances
from limner.metrics.copies import Originals
from limner.metrics.features import random_vgg
from limner.metrics.matches import fit
from limner.pictures.grid import save_grid

Cell = float | int | str | list[float]
SHOWN = 64  # names on a sheet
COLUMNS = {
    "run": "run", "asked": "names in", "n": "n", "score": "CLIP score", "shuffled": "with shuffled names",
    "real": "of real images", "kid": "KID",
}  # fmt: skip


def named(data: Data, language: str, pipeline: Pipeline) -> list[str]:
    """The names of the images of ``data`` in a language; where there is none, the English one."""
    options = pipeline.loaded.run.data
    found: dict[str, str] = {}
    for spoken in dict.fromkeys(("en", language)):
        whole = open_like(["emoji"], pipeline.spec, replace(options, language=spoken), False)
        found |= {name: text for name, text in zip(whole.names, whole.captions or [], strict=True) if text}
    return [found[name] for name in data.names]


def at_size(images: Tensor, like: Pipeline) -> Tensor:
    size = like.spec.height, like.spec.width
    return (
        images if images.shape[-2:] == size else F.interpolate(images, size, mode="bicubic", antialias=True)
    )


def cell(values: Tensor) -> list[float]:
    """[mean, low, high]."""
    mean = mean_of(values)
    return [round(v, 2) for v in (mean.value, mean.low, mean.high)]


def measure(run: str, comparer: Pipeline, language: str, sheets: str) -> dict[str, Cell]:
    """One row; with ``sheets`` one picture."""
    pipeline = Pipeline(run, "cpu")
    options, family = pipeline.loaded.run.data, pipeline.loaded.run.family
    training, held_out = open_like(["emoji"], pipeline.spec, options, False).split(options.holdout)
    texts, n = named(held_out, language, pipeline), len(held_out)
    drawn = as_saved(
        generate(pipeline.model, Condition(n, text=texts), range(n), precision=pipeline.precision)
    )
    real, prompts = held_out.batch(torch.arange(n).numpy()).image, embed_texts(comparer, texts)
    of_drawn, of_real = (embed_images(comparer, at_size(x, comparer)) for x in (drawn, real))
    features = random_vgg()
    if sheets:
        channels = drawn.shape[1]
        nearest = Originals(Images.of(training, channels)).nearest(Images.of(drawn[:SHOWN], channels))
        pairs = torch.stack([drawn[:SHOWN], training.batch(nearest.index.numpy()).image], dim=1).flatten(0, 1)
        words = [word for text in texts[:SHOWN] for word in (text, "nearest in training")]
        side = pipeline.spec.height
        save_grid(Path(sheets) / f"names-{family}-{side}-{language}.png", pairs, words, columns=16)
    return {
        "run": f"{family}, {pipeline.spec.height}x{pipeline.spec.width}", "asked": language, "n": n,
        "score": cell(fit(of_drawn, prompts)), "shuffled": cell(fit(of_drawn, prompts[shuffled(n, 0)])),
        "real": cell(fit(of_real, prompts)),
        "kid": round(distances.kernel_distance(features.of(drawn), features.of(real)), 1),
        "seen": pipeline.loaded.header["seen"], "seconds": round(pipeline.loaded.header["seconds"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="+")
    parser.add_argument("--comparer", required=True, help="a run of clip on emoji")
    parser.add_argument("--languages", nargs="+", default=["en", "zh"])
    parser.add_argument("--sheets", default="", help="folder for sheets")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    comparer = open_comparer(given.comparer, "cpu")
    rows: list[dict[str, Cell]] = []
    for run in given.run:
        for language in given.languages:
            rows.append(measure(run, comparer, language, given.sheets))
            print(rows[-1], flush=True)
    if given.record:
        record("names", {**COLUMNS, "seen": "images seen", "seconds": "seconds of training"}, rows)


if __name__ == "__main__":
    main()
