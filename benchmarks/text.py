"""What systems from text to image are worth: one function a table, each of runs that are there.

    python benchmarks/text.py stages runs/unclip --record
    python benchmarks/text.py tokenizers runs/fsq runs/vqvae --n 1000 --to tokenizers.png --record
    python benchmarks/text.py languages runs/english runs/both --record
    python benchmarks/text.py captions runs/clip --record
    python benchmarks/text.py search runs/clip --source emoji --record
    python benchmarks/text.py ranking runs/clip runs/dalle runs/masked --record
    python benchmarks/text.py upsampler runs/unclip --source emoji --record

Every share has its n and its 95% interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import record
from torch import Tensor
from torch.nn import functional as F

from limner.core import Condition, Draws
from limner.data.open import open_like
from limner.data.sources import shapes
from limner.data.sources.shapes import Scene
from limner.diffusion.sampling import drive
from limner.evaluation.real import as_bytes, as_saved
from limner.families._tokens import TOKENIZER
from limner.inference.networks import over_data
from limner.inference.pipeline import Pipeline, generate
from limner.inference.texts import embed_images, embed_texts, open_comparer
from limner.losses.tokens import perplexity
from limner.metrics import distances
from limner.metrics.features import random_vgg
from limner.metrics.pixels import psnr
from limner.metrics.probes import wilson
from limner.pictures.grid import save_grid

Cell = float | int | str | list[float]


def share(right: Sequence[bool]) -> list[float]:
    """[value, low, high]."""
    value = sum(right) / len(right)
    return [round(v, 4) for v in (value, *wilson(value, len(right)))]


# ---- what each stage of unclip is worth


def shown(images: Tensor, captions: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """Whether images [B, 3, H, W] show both colours and both shapes of their captions, and all but the sizes."""
    things, exact = [], []
    for scene, caption in zip(shapes.recognise(as_bytes(as_saved(images))), captions, strict=True):
        wanted = shapes.parse(caption).canonical
        pairs = [] if scene is None else [(scene.first, wanted.first), (scene.second, wanted.second)]
        things.append(bool(pairs) and all((a.shape, a.colour) == (b.shape, b.colour) for a, b in pairs))
        exact.append(things[-1] and scene is not None and scene.relation == wanted.relation)
    return things, exact


@torch.inference_mode()
def prior_embeddings(model: Any, texts: Sequence[str], seeds: Sequence[int], sampling: Any) -> Tensor:
    """[B, D] of length 1, as drawn for the texts."""
    from limner.families._unclip import Progress

    condition, prior = Condition(len(texts), text=list(texts)), model.prior_stage(sampling)
    drawing = model.draw_embedding(condition, prior, sampling, Draws(seeds), Progress(prior.steps))
    while True:
        try:
            next(drawing)
        except StopIteration as end:
            return end.value


def near(found: Tensor, true: Tensor) -> dict[str, Cell]:
    """Cosine with the true embeddings [B, D], and how often the own one is the nearest of all B."""
    first = (found @ true.T).argmax(1) == torch.arange(len(true))
    return {"cosine": round(float((found * true).sum(1).mean()), 4), "retrieval": share(first.tolist())}


def stages(run: str, n: int, seeds: int) -> list[dict[str, Cell]]:
    """Drawn from the embedding of a real held-out picture, from the prior's, and with text, over several seeds."""
    pipeline = Pipeline(run, "cpu")
    model, size = pipeline.model, (pipeline.spec.height, pipeline.spec.width)
    model.requires_grad_(False)
    scenes = shapes.scenes(n, 0, held_out=True)
    texts = [scene.caption for scene in scenes]
    real = torch.from_numpy(shapes.draw(scenes, *size, seed=1)).permute(0, 3, 1, 2) / 127.5 - 1
    true, usual = model.embed_images(real), model.Sampling()
    alone = replace(usual, no_text=True)
    ways = {
        "embedding of the picture, no text": (Condition(n, image=real), alone),
        "embedding of the picture, text": (Condition(n, image=real, text=texts), usual),
        "prior, no text": (Condition(n, text=texts), alone),
        "prior, text": (Condition(n, text=texts), usual),
    }
    rows = []
    for name, (condition, sampling) in ways.items():
        things: list[bool] = []
        exact: list[bool] = []
        for seed in range(seeds):
            images = generate(
                model, condition, range(seed * n, (seed + 1) * n), sampling, precision=pipeline.precision
            )
            for every, found in zip((things, exact), shown(images, texts), strict=True):
                every += found
        rows.append({"drawn from": name, "things": share(things), "exact": share(exact), "n": len(exact)})
    rows.append({"drawn from": "real pictures", "things": share(shown(real, texts)[0]), "n": n})
    drawn = prior_embeddings(model, texts, range(n), usual)
    for name, found in (
        ("the prior's embedding", drawn),
        ("the text's embedding", model.comparer.embed_texts(texts)),
    ):
        rows.append({"drawn from": name, "n": n, **near(found, true)})
    return rows


# ---- the upsampler


@torch.inference_mode()
def upsampled(model: Any, image: Tensor, seeds: Sequence[int]) -> Tensor:
    """Pictures [B, C, H, W] made small and upsampled again."""
    sampling = model.Sampling()
    stage = model.upsampler_stage(model.shrink(image), model.upsampler_plan(sampling))
    drawing = stage.draw(Condition(len(image)), sampling.solver, None, Draws(seeds))
    *_, last = drive(drawing)
    return last.x.clamp(-1, 1)


def upsampler(run: str, source: str, n: int) -> list[dict[str, Cell]]:
    """Of held-out pictures: PSNR with the picture itself, and KID with other held-out ones, beside plain enlarging."""
    pipeline = Pipeline(run, "cpu")
    model, run_data = pipeline.model, pipeline.loaded.run.data
    held_out = open_like([source], pipeline.spec, run_data, False).split(run_data.holdout)[1]
    pictures = held_out.batch(held_out.order(0, min(2 * n, len(held_out)), 0)).image
    image, others = pictures.chunk(2)
    small = model.shrink(image)
    made = [
        upsampled(model, part, range(64 * i, 64 * i + len(part))) for i, part in enumerate(image.split(64))
    ]
    ways = {
        "upsampler": torch.cat(made),
        "bicubic": F.interpolate(small, image.shape[-2:], mode="bicubic").clamp(-1, 1),
        "nearest pixels": F.interpolate(small, image.shape[-2:]),
        "the pictures themselves": image,
    }
    features = random_vgg()
    of_others = features.of(others)
    rows: list[dict[str, Cell]] = []
    for name, enlarged in ways.items():
        row: dict[str, Cell] = {"enlarged by": name, "n": len(image)}
        row["kid"] = round(distances.kernel_distance(features.of(enlarged), of_others), 1)
        if enlarged is not image:
            decibels = psnr(enlarged, image)
            mean, error = float(decibels.mean()), 1.96 * float(decibels.std()) / len(image) ** 0.5
            row["psnr"] = [round(v, 2) for v in (mean, mean - error, mean + error)]
        rows.append(row)
    return rows


# ---- tokenizers


@torch.inference_mode()
def tokenizers(runs: Sequence[str], n: int, to: str) -> list[dict[str, Cell]]:
    """Held-out pictures of `shapes`, encoded and decoded by each run: what the oracle reads, and the codes in use.

    ``to``: a sheet, whose upper rows are the pictures and whose other rows are what each run made of them.
    """
    scenes = shapes.scenes(n, 0, held_out=True)
    captions, rows, sheet = [scene.caption for scene in scenes], [], []
    for run in runs:
        pipeline = Pipeline(run, "cpu")
        tokenizer = TOKENIZER.find(pipeline.model)
        drawn = shapes.draw(scenes, pipeline.spec.height, pipeline.spec.width, seed=1)
        image = torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1
        tokens = torch.cat([tokenizer.tokenise(part) for part in image.split(100)])
        again = as_saved(torch.cat([tokenizer.detokenise(part) for part in tokens.split(100)]))
        counts = torch.bincount(tokens.flatten(), minlength=tokenizer.codes)
        header = pipeline.loaded.header
        rows.append({
            "tokenizer": f"{tokenizer.config.kind}, {tokenizer.codes} codes",
            "before": share(shown(image, captions)[1]), "after": share(shown(again, captions)[1]), "n": n,
            "used": int((counts > 0).sum()), "perplexity": round(float(perplexity(counts.double())), 1),
            "psnr": round(float(psnr(again, image).mean()), 2), "seen": header["seen"],
            "seconds": round(header["seconds"]),
        })  # fmt: skip
        sheet += [*([] if sheet else image[:16]), *again[:16]]
    if to:
        save_grid(Path(to), sheet, columns=16)
    return rows


# ---- two languages


def languages(runs: Sequence[str], n: int, seeds: int) -> list[dict[str, Cell]]:
    """The same held-out scenes asked in English and in Chinese, of each run in the languages of its captions."""
    scenes = shapes.scenes(n, 0, held_out=True)
    rows: list[dict[str, Cell]] = []
    for run in runs:
        pipeline = Pipeline(run, "cpu")
        trained = pipeline.loaded.run.data.language
        for language in ("en", "zh") if trained == "both" else (trained,):
            texts = shapes.captions(scenes, language) * seeds
            condition, precision = Condition(len(texts), text=texts), pipeline.precision
            exact = shown(generate(pipeline.model, condition, range(len(texts)), precision=precision), texts)[
                1
            ]
            of = {"run": run, "captions": trained, "asked in": language}
            rows.append({**of, "exact": share(exact), "n": len(exact)})
    return rows


# ---- clip: captions told apart, images found by words, the best of many


def changed(scene: Scene) -> dict[str, list[Scene]]:
    """All scenes that differ from one in an attribute, by the attribute; and the one of both colours exchanged."""
    found: dict[str, list[Scene]] = {"relation": [replace(scene, relation=r) for r in shapes.RELATIONS]}
    for attribute, values in (("shape", shapes.SHAPES), ("colour", shapes.COLOURS), ("size", shapes.SIZES)):
        found[attribute] = [
            replace(scene, **{which: replace(getattr(scene, which), **{attribute: value})})
            for which in ("first", "second")
            for value in values
        ]
    one, two = scene.first, scene.second
    swapped = replace(scene, first=replace(one, colour=two.colour), second=replace(two, colour=one.colour))
    found["colours swapped"] = [swapped]
    return {name: [other for other in others if other != scene] for name, others in found.items()}


def captions(run: str, n: int) -> list[dict[str, Cell]]:
    """How often the right caption fits a held-out picture better than all that differ from it in one attribute."""
    pipeline = open_comparer(run)
    scenes = shapes.scenes(n, 0, held_out=True)
    pictures = shapes.draw(scenes, pipeline.spec.height, pipeline.spec.width, seed=1)
    images = embed_images(pipeline, torch.from_numpy(pictures).movedim(-1, 1) / 127.5 - 1)  # [N, D]
    own = (images * embed_texts(pipeline, [scene.caption for scene in scenes])).sum(1)  # [N]
    rows: list[dict[str, Cell]] = []
    for attribute in changed(scenes[0]):
        right = []
        for image, least, others in zip(images, own, (changed(s)[attribute] for s in scenes), strict=True):
            if others:
                cosines = embed_texts(pipeline, [other.caption for other in others]) @ image
                right.append(bool((cosines < least).all()))
        rows.append({"all that differ in": attribute, "right": share(right), "n": len(right)})
    return rows


def search(run: str, source: str, most: int = 10) -> list[dict[str, Cell]]:
    """How often an image is among the first ones found by its caption, of held-out images among themselves."""
    pipeline = open_comparer(run)
    data = open_like([source], pipeline.spec, pipeline.loaded.run.data, False)
    held_out = data.split(pipeline.loaded.run.data.holdout)[1]
    images = over_data(held_out, partial(embed_images, pipeline))
    cosines = embed_texts(pipeline, held_out.captions or []) @ images.T  # [N texts, N images]
    found = [i in row.topk(min(most, len(row))).indices.tolist() for i, row in enumerate(cosines)]
    return [{"of": f"{len(found)} held-out images", "found": share(found), "n": len(found)}]


def ranking(comparer: str, runs: Sequence[str], n: int, seeds: int) -> list[dict[str, Cell]]:
    """How many held-out prompts are drawn exactly, of one image each and of the best of 8 and of 32."""
    scenes = [scene.caption for scene in shapes.scenes(n, 0, held_out=True)]
    rows: list[dict[str, Cell]] = []
    for run in runs:
        pipeline = Pipeline(run)
        for candidates in (1, 8, 32):
            right: list[bool] = []
            for seed in range(seeds):
                asked = {"prompt": scenes, "seed": seed * 32 * n}
                if candidates > 1:
                    asked |= {"rank": comparer, "candidates": candidates}
                right += shown(pipeline.tensors(n, **asked), scenes)[1]
            rows.append(
                {"run": pipeline.model.family, "best of": candidates, "exact": share(right), "n": len(right)}
            )
    return rows


COLUMNS = {
    "tokenizers": {
        "before": "exact before", "after": "exact after", "n": "n", "used": "codes used", "perplexity": "perplexity",
        "psnr": "PSNR, dB", "seen": "images seen", "seconds": "seconds of training",
    },
    "stages": {
        "things": "both colours and shapes", "exact": "with the relation",
        "cosine": "cosine with the picture's own embedding", "retrieval": "its own is nearest", "n": "n",
    },
    "languages": {"captions": "captions", "asked in": "asked in", "exact": "exact", "n": "n"},
    "captions": {"right": "the right one fits best", "n": "n"},
    "search": {"found": "among the first 10", "n": "n"},
    "ranking": {"run": "family", "seen": "images seen", "best of": "best of", "exact": "with the relation", "n": "n"},
    "upsampler": {"psnr": "PSNR, dB", "kid": "KID, random features", "n": "n"},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=COLUMNS)
    parser.add_argument("run", nargs="+")
    parser.add_argument("--to", default="", help="tokenizers: a sheet of pictures before and after")
    parser.add_argument("--source", default="emoji")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.table == "tokenizers":
        rows = tokenizers(given.run, given.n, given.to)
    elif given.table == "languages":
        rows = languages(given.run, given.n, given.seeds)
    elif given.table == "stages":
        rows = stages(given.run[0], given.n, given.seeds)
    elif given.table == "captions":
        rows = captions(given.run[0], given.n)
    elif given.table == "search":
        rows = search(given.run[0], given.source)
    elif given.table == "ranking":
        rows = ranking(given.run[0], given.run[1:], given.n, given.seeds)
    else:
        rows = upsampler(given.run[0], given.source, given.n)
    for row in rows:
        print(row)
    if given.record:
        first = next(iter(rows[0]))
        record(f"text-{given.table}", {first: first, **COLUMNS[given.table]}, rows)


if __name__ == "__main__":
    main()
