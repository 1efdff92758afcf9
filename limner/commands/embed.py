"""`limner embed`: the features of every image."""

from __future__ import annotations

from dataclasses import dataclass

from limner.commands import print_result
from limner.commands.options import RunFolder, Sources, parse
from limner.settings import ThreadCount


@dataclass(frozen=True)
class Options:
    """Write the features of every image to a file: path, label and features, one row per image."""

    run: RunFolder  # folder of a run that describes images
    sources: Sources  # folders, archives, parquet files or built-in sets
    to: str  # .npz, .safetensors or .parquet file to write
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again
    json: bool = False  # print JSON


def run(argv: list[str]) -> None:
    given = parse(Options, argv, "embed")
    from limner.inference.understand import embed

    result = embed(given.run, given.sources, given.to, given.device, given.json)
    print_result(result, given.json, f"{result.features} features of {result.n:,} images in {result.to}")
