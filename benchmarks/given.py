"""Sheets of what is drawn from given pictures that a run never saw.

    python benchmarks/given.py repainted runs/masked --to docs/repainted.png
    python benchmarks/given.py variations runs/unclip --to docs/variations.png

``repainted``: in each row a picture, the part that is drawn anew in grey, and seven drawings of it, by its caption.
``variations``: in each row a picture and eight drawings from its embedding alone. It prints the largest change outside
the part, in levels of 255.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from limner.core import Condition
from limner.data.open import open_like
from limner.evaluation.real import as_saved
from limner.inference.pipeline import Pipeline, generate
from limner.pictures.grid import save_grid

ROWS, DRAWN = 8, 8


def held_out(pipeline: Pipeline) -> tuple[Tensor, list[str]]:
    """ROWS random pictures [N, C, H, W] of those that the run never saw, and their captions."""
    run = pipeline.loaded.run
    data = open_like(run.sources, pipeline.spec, run.data, False).split(run.data.holdout)[1]
    some = data.part(data.order(0, ROWS, 0))
    batch = some.batch(torch.arange(ROWS).numpy())
    return batch.image, list(some.captions or [""] * ROWS)


def repainted(pipeline: Pipeline) -> tuple[Tensor, list[str]]:
    """[ROWS * (DRAWN + 1), C, H, W] and what stands below each."""
    image, captions = held_out(pipeline)
    height, width = image.shape[-2:]
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 2 :, :] = 1  # the lower half
    rows, words, worst = [], [], 0.0
    for i in range(ROWS):
        n = DRAWN - 1
        condition = Condition(
            n, text=captions[i : i + 1] * n, image=image[i].expand(n, -1, -1, -1),
            mask=mask.expand(n, -1, -1, -1),
        )  # fmt: skip
        drawn = generate(pipeline.model, condition, range(n), precision=pipeline.precision)
        outside = (mask == 0).expand_as(drawn)
        change = (as_saved(drawn) - as_saved(image[i].expand_as(drawn)))[outside].abs().max() * 127.5
        worst = max(worst, float(change))
        rows += [image[i], torch.where(mask[0] > 0, 0.0, image[i]), *drawn]
        words += [captions[i], "given", *[f"seed {k}" for k in range(n)]]
    print(f"largest change outside the mask: {worst:.0f} of 255")
    return torch.stack(rows), words


def variations(pipeline: Pipeline) -> tuple[Tensor, list[str]]:
    """[ROWS * (DRAWN + 1), C, H, W] and what stands below each."""
    image, captions = held_out(pipeline)
    rows, words = [], []
    for i in range(ROWS):
        condition = Condition(DRAWN, image=image[i].expand(DRAWN, -1, -1, -1))
        rows += [image[i], *generate(pipeline.model, condition, range(DRAWN), precision=pipeline.precision)]
        words += [captions[i], *[f"seed {k}" for k in range(DRAWN)]]
    return torch.stack(rows), words


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sheet", choices=("repainted", "variations"))
    parser.add_argument("run")
    parser.add_argument("--to", required=True, help="a .png")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pipeline = Pipeline(given.run, "cpu")
    images, words = (repainted if given.sheet == "repainted" else variations)(pipeline)
    save_grid(Path(given.to), images, words, columns=DRAWN + 1)


if __name__ == "__main__":
    main()
