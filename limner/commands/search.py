"""`limner search`: the images that resemble a picture, or fit a text."""

from __future__ import annotations

from dataclasses import dataclass

from limner.commands import print_json, say, table
from limner.commands.options import Picture, RunFolder, Source, parse
from limner.fields import Count
from limner.settings import ThreadCount


@dataclass(frozen=True)
class Options:
    """Find the images of a source that resemble a picture most, by the features of a run, or that fit a text best."""

    run: RunFolder  # folder of a run that describes images, or with --text of one that compares them with texts
    source: Source  # images to search: a folder, archive, parquet file or built-in set
    query: Picture = ""  # the picture
    text: str = ""  # what the images should show, in place of a picture
    n: Count = 16  # images to find
    to: str = "search.png"  # sheet to write
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again
    json: bool = False  # print JSON


def run(argv: list[str]) -> None:
    given = parse(Options, argv, "search")
    from limner.inference.understand import search

    result = search(
        given.run, given.source, given.query, given.n, given.to, given.device, given.json, given.text
    )
    if given.json:
        print_json(result)
        return
    labelled = any(match.label for match in result.found)
    table(
        ["image", "similarity", *(["label"] if labelled else [])],
        [[m.path, f"{m.similarity:.4f}", *([m.label] if labelled else [])] for m in result.found],
    )
    say(f"The most similar of {result.n:,} images are in {result.to}.")
