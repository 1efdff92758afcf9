"""The commands that look at images with a run: `limner embed`, `limner classify` and `limner search`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import tyro

from limner.commands import say, table

FIRST = 20  # images in the table on the terminal


@dataclasses.dataclass(frozen=True)
class _Embed:
    """Write the features of every image to a file: path, label and features, one row an image."""

    run: tyro.conf.Positional[str]  # folder of a run that describes images
    sources: tyro.conf.Positional[tuple[str, ...]]  # folders, archives, parquet files, shapes, digits, emoji
    to: str  # .npz, .safetensors or .parquet file to write
    device: str = "auto"  # auto, cpu, cuda
    json: bool = False  # for programs to read


@dataclasses.dataclass(frozen=True)
class _Classify:
    """Say what every image shows; where the images have labels, also how often that is right."""

    run: tyro.conf.Positional[str]  # folder of a run that classifies images
    sources: tyro.conf.Positional[tuple[str, ...]]  # folders, archives, parquet files, shapes, digits, emoji
    to: str = ""  # .csv or .json file to write, and a sheet beside it; default: RUN/predictions.csv
    labels: bool = True  # compare with the labels of the images where they have any
    device: str = "auto"  # auto, cpu, cuda
    json: bool = False  # for programs to read; with the three most probable classes


@dataclasses.dataclass(frozen=True)
class _Search:
    """Find the images that look most like a picture, to a run that describes images."""

    run: tyro.conf.Positional[str]  # folder of a run that describes images
    source: tyro.conf.Positional[str]  # where to look: a folder, archive, parquet file, shapes, digits, emoji
    query: tyro.conf.Positional[str]  # the picture
    n: int = 16  # images to find
    to: str = "search.png"  # sheet to write
    device: str = "auto"  # auto, cpu, cuda
    json: bool = False  # for programs to read


def embed(argv: Sequence[str]) -> int:
    given = tyro.cli(_Embed, prog="limner embed", args=list(argv))
    from limner.inference import understand

    told = understand.embed(given.run, given.sources, given.to, given.device, given.json)
    if given.json:
        print(json.dumps(told, indent=2))
    else:
        say(f"{told['features']} features of {told['n']:,} images in {told['to']}")
    return 0


def classify(argv: Sequence[str]) -> int:
    given = tyro.cli(_Classify, prog="limner classify", args=list(argv))
    from limner.inference import understand

    told = understand.classify(given.run, given.sources, given.to, given.labels, given.device, given.json)
    if given.json:
        print(json.dumps(told, ensure_ascii=False, indent=2))
        return 0
    labelled = "accuracy" in told
    table(
        ["image", "looks like", "probability", *(["is"] if labelled else [])],
        [
            [p["path"], p["predicted"], f"{p['probability']:.1%}", *([p["label"]] if labelled else [])]
            for p in told["predictions"][:FIRST]
        ],
    )
    if told["n"] > FIRST:
        say(f"... and {told['n'] - FIRST:,} more.")
    if labelled:
        v = told["accuracy"]
        say(f"Right: {v['value']:.1%} of {v['n']:,} (95% interval {v['low']:.1%} to {v['high']:.1%}).")
        if told["trained_on_these"]:
            say(
                "It was trained on most of these: limner evaluate says how often it is right on held-out images."
            )
    say(f"All are in {told['to']}; look at {told['sheet']}.")
    return 0


def search(argv: Sequence[str]) -> int:
    given = tyro.cli(_Search, prog="limner search", args=list(argv))
    from limner.inference import understand

    told = understand.search(
        given.run, given.source, given.query, given.n, given.to, given.device, given.json
    )
    if given.json:
        print(json.dumps(told, ensure_ascii=False, indent=2))
        return 0
    labelled = any(row["label"] for row in told["found"])
    table(
        ["image", "similarity", *(["label"] if labelled else [])],
        [
            [row["path"], f"{row['similarity']:.4f}", *([row["label"]] if labelled else [])]
            for row in told["found"]
        ],
    )
    say(f"The nearest of {told['n']:,} images are in {told['to']}.")
    return 0
