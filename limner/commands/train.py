"""`limner train`: a family trained on images."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple

from limner import config, families, fields, files
from limner.commands import say
from limner.commands.options import Config, Sources, flag_value, parse
from limner.config import Run
from limner.fields import Seed
from limner.settings import DataOptions, LimnerError, Training


@dataclass(frozen=True)
class Options:
    """Train a family on images. To see the settings of a family too: limner train FAMILY --help"""

    # folders, zips, tars, parquet files, hf:owner/name, or built-in sets; where a family is given pictures two: first
    # those of given pictures, then those of wanted ones
    sources: Sources = ()
    out: str = ""  # folder for the run
    preset: str = ""  # tiny, small, base or paper. Default: small on a CPU, base on a GPU
    budget: str = "10m"  # length of training: 90s, 20m, 1.5h, 200kimg, 50epochs
    # of the images: 32, or HEIGHTxWIDTH as in 64x48. Default: their own, if all share one of 16 to 64, else 32
    size: str = ""
    seed: Seed = 0  # the same seed gives the same run
    resume: bool = False  # go on from the newest checkpoint in --out, with its settings, or begin


@dataclass(frozen=True, kw_only=True)
class FamilyOptions(Options, Generic[Config]):
    __doc__ = Options.__doc__
    model: Config
    training: Training
    data: DataOptions


class Arguments(NamedTuple):
    run: Run
    out: str
    resume: bool


def run(argv: list[str]) -> int:
    given = parse_train(argv)
    from limner.core import Generates, Translates
    from limner.evaluation import report
    from limner.training.journal import read_log
    from limner.training.run import train

    result = train(given.run, given.out, resume=given.resume)
    code = 128 + result.stopped if result.stopped else 0
    if int(os.environ.get("RANK", "0")) > 0:  # of several processes only the first reports
        return code
    family, out = given.run.family, Path(given.out)
    rate = result.images_per_second
    summary = f"{result.seen:,} {result.noun}s seen in {result.seconds:.0f} s, {rate:,.0f} per second."
    settings = json.dumps(fields.to_json(given.run), indent=2)
    sections = report.training_sections(out, read_log(out), settings)
    files.write_text(out / "report.html", report.page(f"{family}: {out.name}", summary, sections))
    if result.stopped:
        say(f"Stopped and saved: {summary} Resume: limner train {family} --out {out} --resume")
    else:
        following = f"measure: limner evaluate {out} SOURCE"
        if families.supports(family, Translates):
            following = f"apply it: limner apply {out} PICTURE --to FILE"
        elif families.supports(family, Generates):
            following = f"draw: limner sample {out}"
        say(f"{summary}\nLook at {out / 'report.html'}, then {following}")
    return code


def parse_train(argv: Sequence[str]) -> Arguments:
    """The arguments of ``limner train FAMILY``. Raises LimnerError."""
    if not argv or argv[0].startswith("-"):
        parse(Options, argv, "train FAMILY")  # --help ends here
        raise LimnerError("The family comes first, then the images: limner train FAMILY SOURCE... --out RUN.")
    family = families.load(argv[0])
    preset = flag_value(argv, "--preset")
    start = _saved_run(argv, preset) if "--resume" in argv else config.preset_run(argv[0], preset)
    values = {f.name: getattr(start, f.name) for f in dataclasses.fields(Run) if f.name != "family"}
    values["size"] = "x".join(map(str, start.size)) if start.size else ""
    options: Any = FamilyOptions
    given = parse(options[family.Config], argv[1:], f"train {argv[0]}", options(**values))
    if given.resume and not _holds_run(Path(given.out)):
        if not given.sources:
            raise LimnerError(
                f"{given.out} holds no run to resume: name another --out, or the images to begin one there."
            )
        if os.environ.get("RANK", "0") == "0":  # of several processes only the first reports
            say(f"{given.out} holds no run yet: --resume begins one.")
    if not given.sources:
        raise LimnerError(
            f"Name the images to train on: a folder, or a built-in set: limner train {argv[0]} shapes."
        )
    if not given.out:
        raise LimnerError(f"Name the folder for the run, for instance --out runs/{argv[0]}.")
    config.parse_budget(given.budget, epoch=1)  # refused now rather than after the data is packed
    values = {name: getattr(given, name) for name in values}
    values["size"] = config.parse_size(given.size) if given.size else None
    return Arguments(Run(family=argv[0], **values), given.out, given.resume)


def _holds_run(folder: Path) -> bool:
    """Whether a training wrote there before, if only its settings."""
    return any((folder / name).exists() for name in ("config.json", "model.safetensors", "checkpoints"))


def _saved_run(argv: Sequence[str], preset: str | None) -> Run:
    """The run that --resume continues; flags change single settings. Where there is none, the one that it begins."""
    out = flag_value(argv, "--out")
    if not out:
        raise LimnerError("Name the run to resume: --out RUN --resume.")
    if not _holds_run(Path(out)):
        return config.preset_run(argv[0], preset)
    try:
        saved = config.read_run(out)
    except LimnerError:
        from limner import checkpoint

        saved = checkpoint.run_of(out)
    if (argv[0], preset or saved.preset) != (saved.family, saved.preset):
        raise LimnerError(
            f"{out} is a run of {saved.family} from the preset {saved.preset}, so it cannot resume as "
            f"{argv[0]} from {preset or saved.preset}: name those, or choose another --out."
        )
    return saved
