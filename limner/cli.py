"""The commands; thin. Nothing here knows a family by name, and help answers before torch is imported."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from limner import config, families
from limner.settings import DataOptions, LimnerError, nearest

MISTAKE, INTERRUPTED = 2, 130  # exit codes; a training stopped by a signal exits with 128 + its number

HELP = """\
usage: limner COMMAND ...

Train, sample, measure and serve image generators of every family on your own images.

  limner demo                            train a text-to-image model here in minutes, and score it
  limner data check SOURCE...            what is in a source, what is wrong with it, how to mend it
  limner data show SOURCE --to PNG       a sheet of its images with labels or captions
  limner train FAMILY SOURCE... --out RUN   train a family on images
  limner sample RUN                      draw new images from a run
  limner evaluate RUN|DIR SOURCE...      how good a run's or a folder's images are, and whether they are copies
  limner compare SOURCE... --families A,B   train several families alike; one report of which suits you
  limner show RUN                        what a run is: family, config, data, where it came from
  limner families [FAMILY]               the families there are; one family's settings and size

`limner COMMAND --help` says more of each. A SOURCE is a folder of images, a zip, a tar, a parquet file,
hf:owner/name, or one of shapes, digits and emoji, which are built in."""


@dataclasses.dataclass(frozen=True)
class _Demo:
    """Train the default text-to-image family from random weights, and score it on prompts it never saw."""

    out: str = "runs/demo"  # folder for the run, samples.png, report.html and demo.json
    budget: str = "297s"  # length of training
    seed: int = 0  # the same seed gives the same prompts


@dataclasses.dataclass(frozen=True)
class _Check:
    """Say what is in a source, what is wrong with it, and how to mend it."""

    sources: tyro.conf.Positional[tuple[str, ...]]  # folders, archives, parquet files, shapes, digits, emoji
    json: bool = False  # for programs to read
    data: DataOptions = dataclasses.field(default_factory=DataOptions)


@dataclasses.dataclass(frozen=True)
class _Look:
    """Draw a sheet of a source's images with their labels or captions."""

    sources: tyro.conf.Positional[tuple[str, ...]]  # folders, archives, parquet files, shapes, digits, emoji
    to: str = "data.png"  # picture to write
    n: int = 64  # images on the sheet
    size: str = ""  # 32, or HEIGHTxWIDTH as 64x48; default: as the data has it
    seed: int = 0  # which images
    data: DataOptions = dataclasses.field(default_factory=DataOptions)


@dataclasses.dataclass(frozen=True)
class _Show:
    """Say what a run is: its family, config, data, images seen, and where it came from."""

    run: tyro.conf.Positional[str]  # folder of a run, or its model.safetensors
    json: bool = False  # for programs to read


@dataclasses.dataclass(frozen=True)
class _Evaluate:
    """Measure a run, or a folder of images that any program made, against real images."""

    what: tyro.conf.Positional[str]  # folder of a run, or of images
    sources: tyro.conf.Positional[tuple[str, ...]]  # the real images
    n: int | None = None  # images to draw or take; default: 1000, or as many as are real
    features: str = "random"  # random, inception, clip, dinov2, or a run that describes images
    weights: str = ""  # file or folder of the features' weights, where they need any
    to: str = ""  # folder for evaluation.json and pictures; default: RUN/evaluation
    seed: int = 0  # of the first image drawn
    json: bool = False  # for programs to read


@dataclasses.dataclass(frozen=True)
class _Compare:
    """Train several families for the same time on the same images, measure all alike, and report.

    What stands behind a lone -- goes to every training, as: -- --data.no-labels
    """

    sources: tyro.conf.Positional[tuple[str, ...]]  # folders, archives, parquet files, shapes, digits, emoji
    families: str  # names with commas between
    budget: str = "5m"  # length of each training
    to: str = (
        "runs/compare"  # folder for report.html, report.json and the runs; an unfinished one is gone on with
    )
    preset: str = ""  # tiny, small, base or paper; default: small on a CPU, base on a GPU
    size: str = ""  # 32, or HEIGHTxWIDTH as 64x48; default: as the data has it
    n: int | None = None  # images to draw of each; default: 1000, or as many as are real
    features: str = "random"  # random, inception, clip, dinov2
    seed: int = 0
    json: bool = False  # for programs to read


def _print(text: str) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text)


def demo(argv: Sequence[str]) -> int:
    given = tyro.cli(_Demo, prog="limner demo", args=list(argv))
    from limner.demo import demo as run_demo

    told = run_demo(Path(given.out), given.budget, given.seed)
    return 128 + told["stopped"] if "stopped" in told else 0


def data(argv: Sequence[str]) -> int:
    commands: dict[str, Callable[[Sequence[str]], int]] = {"check": _data_check, "show": _data_show}
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: limner data check SOURCE... | limner data show SOURCE --to PNG\n")
        print("  check   what is in a source, what is wrong with it, how to mend it; --json too")
        print("  show    a sheet of its images with labels or captions")
        return 0 if argv else MISTAKE
    if argv[0] not in commands:
        raise LimnerError(f"There is no command `limner data {argv[0]}`.{nearest(argv[0], commands)}")
    return commands[argv[0]](argv[1:])


def _data_check(argv: Sequence[str]) -> int:
    given = tyro.cli(_Check, prog="limner data check", args=list(argv))
    from limner.data import check

    report = check(given.sources, given.data)
    print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2) if given.json else str(report))
    return 0


def _data_show(argv: Sequence[str]) -> int:
    given = tyro.cli(_Look, prog="limner data show", args=list(argv))
    from limner.data import grid, open_data

    size = config.parse_size(given.size) if given.size else None
    found = open_data(given.sources, size=size, options=given.data)
    rows = found.order(0, min(given.n, len(found)), given.seed)
    captions = None
    if found.captions is not None:
        captions = [found.captions[i] for i in rows]
    elif found.labels is not None:
        captions = [found.spec.classes[found.labels[i]] for i in rows]
    Path(given.to).parent.mkdir(parents=True, exist_ok=True)
    grid(found.batch(rows).image, captions).save(given.to)
    _print(f"{len(rows)} of {len(found):,} images in {given.to}")
    return 0


def train(argv: Sequence[str]) -> int:
    given = config.parse_train(argv)
    from limner import report
    from limner.journal import read_log
    from limner.loop import train as run_training

    result = run_training(given.run, given.out, resume=given.resume)
    out = Path(given.out)
    if int(os.environ.get("RANK", "0")) == 0:
        lead = f"{result.seen:,} images seen in {result.seconds:.0f} s, {result.images_per_second:,.0f} a second."
        settings = json.dumps(config.to_json(given.run), indent=2)
        sections = report.training_sections(out, read_log(out), settings)
        (out / "report.html").write_text(report.page(f"{given.run.family}: {out.name}", lead, sections))
        if result.stopped:
            _print(
                f"Stopped and saved after {lead} Go on: limner train {given.run.family} --out {out} --resume"
            )
        else:
            _print(f"{lead}\nLook at {out / 'report.html'}, then draw: limner sample {out}")
    return 128 + result.stopped if result.stopped else 0


def sample(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        config.parse_sample(argv)
        return 0
    from limner.sample import Painter, bar, condition_for, save_folder

    device = "auto"
    if "--device" in argv[:-1]:
        device = argv[argv.index("--device") + 1]
    painter = Painter(argv[0], device)
    given = config.parse_sample(argv, painter.model.Sampling)
    asked = given.prompt or given.label
    n = given.n if given.n is not None else 8 * len(asked) or 64
    knobs = {f.name: getattr(given.sampling, f.name) for f in dataclasses.fields(given.sampling)}
    with bar(f"drawing {n} images") as watch:
        images = painter.tensors(n, given.prompt, given.label, given.seed, given.batch, watch, **knobs)
    run = Path(argv[0])
    to = Path(given.to or (run if run.is_dir() else run.parent) / "samples.png")
    condition = condition_for(painter.model, n, given.prompt, given.label)
    if to.suffix.lower() == ".png":
        from limner.data import grid
        from limner.sample import captions_of

        to.parent.mkdir(parents=True, exist_ok=True)
        if n == 1:
            from limner.data import to_pil

            to_pil(images[0]).save(to)
        else:
            grid(images, captions_of(painter.spec, condition)).save(to)
    elif to.suffix:
        raise LimnerError(f"Cannot write {to}: name a .png for one sheet, or a folder for one file an image.")
    else:
        save_folder(images, to, range(given.seed, given.seed + n), condition, painter.spec)
    _print(f"{n} images in {to}")
    return 0


def evaluate(argv: Sequence[str]) -> int:
    given = tyro.cli(_Evaluate, prog="limner evaluate", args=list(argv))
    if not given.sources:
        raise LimnerError("Name the real images to measure against: limner evaluate RUN SOURCE.")
    from limner import evaluate as evaluation

    told = evaluation.evaluate(
        given.what, given.sources, given.n, given.features, given.weights, given.to, given.seed, given.json
    )
    if given.json:
        print(json.dumps(told, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("", "value", "95% interval", "real against real", box=None, pad_edge=False)
    for row in evaluation.rows(told):
        table.add_row(*row)
    Console(highlight=False).print(table)
    if "n" in told:
        about = f"{told['n']:,} images against {told['real']:,}, features {told['features']} {told['features_hash']}"
        _print(f"{about}, {told['resize']}.")
        if told["n"] < 10_000:
            _print("Below 10,000 images trust the kernel distance: the Frechet distance is biased by n.")
    _print(f"Look at {told['to']}.")
    return 0


def compare(argv: Sequence[str]) -> int:
    own = list(argv)
    extra = own[own.index("--") + 1 :] if "--" in own else []
    given = tyro.cli(_Compare, prog="limner compare", args=own[: own.index("--")] if "--" in own else own)
    if not given.sources:
        raise LimnerError("Name the images to train on: limner compare SOURCE --families flow,vae.")
    from limner import compare as comparison

    names = [name.strip() for name in given.families.split(",") if name.strip()]
    rows = comparison.compare(
        given.sources,
        names,
        given.budget,
        given.to,
        given.preset,
        given.size,
        given.n,
        given.features,
        given.seed,
        extra,
    )
    if given.json:
        print((Path(given.to) / "report.json").read_text("utf-8"))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(*comparison.SHORT, box=None, pad_edge=False)
        for row in comparison.ranked(rows):
            if "failed" not in row:
                cells = comparison.cells(row)
                table.add_row(*(cells[at] for at in comparison.SHORT.values()))
        Console(highlight=False).print(table)
        for row in rows:
            if "failed" in row:
                print(f"{row['family']} failed: {row['failed']}")
        _print(f"{comparison.advice(rows)}\nLook at {Path(given.to) / 'report.html'}.")
    if len(rows) < len(names):
        return INTERRUPTED
    return 0 if any("kid" in row for row in rows) else 1


def show(argv: Sequence[str]) -> int:
    given = tyro.cli(_Show, prog="limner show", args=list(argv))
    from limner import checkpoint

    loaded = checkpoint.load(given.run)
    parts = {name: sum(p.numel() for p in m.parameters()) for name, m in loaded.model.named_children()}
    told = {**loaded.header, "parameters": parts}
    if given.json:
        print(json.dumps(told, ensure_ascii=False, indent=2))
        return 0
    from rich.table import Table

    spec, run = loaded.spec, loaded.run
    rows = {
        "family": f"{run.family} ({run.preset}): {type(loaded.model).about}",
        "paper": type(loaded.model).paper,
        "images": f"{spec.channels} channels, {spec.height} x {spec.width}"
        + (f", {len(spec.classes)} classes: {', '.join(spec.classes[:8])}" if spec.classes else "")
        + (", captions" if spec.captions else ""),
        "trained on": ", ".join(run.sources) + f", seed {run.seed}, budget {run.budget}",
        "images seen": f"{told['seen']:,} in {told.get('seconds', 0):,.0f} s",
        "parameters": ", ".join(f"{name} {count:,}" for name, count in parts.items()),
        "parents": ", ".join(told.get("parents") or ()) or "none",
        "written by": ", ".join(f"{name} {version}" for name, version in told.get("versions", {}).items()),
        "digest": str(told.get("digest", "")),
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", value)
    _print("")
    from rich.console import Console

    Console(highlight=False).print(table)
    print(json.dumps(config.to_json(run.model), indent=2))
    return 0


def list_families(argv: Sequence[str]) -> int:
    given = config.parse_families(argv)
    if not given.family:
        return _table_of_families(given.json)
    import torch

    from limner.core import ImageSpec

    family = families.load(given.family)
    height, width = config.parse_size(given.size or "32")
    classes = tuple(f"class {i}" for i in range(given.classes))
    spec = ImageSpec(given.channels or 3, height, width, classes=classes)
    with torch.device("meta"):
        model = family(given.model, spec)
    parts = {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad)
        for name, module in model.named_children()
    }
    if given.json:
        print(json.dumps({"config": config.to_json(given.model), "parameters": parts}, indent=2))
        return 0
    _print(f"[bold]{given.family}[/] ({given.preset}): {family.about}\n{family.paper}\n")
    print(json.dumps(config.to_json(given.model), indent=2))
    _print(f"\ntrainable parameters at {spec.channels} x {height} x {width}:")
    for name, count in [*parts.items(), ("in all", sum(parts.values()))]:
        print(f"{count:>15,}  {name}")
    return 0


def _table_of_families(as_json: bool) -> int:
    from limner.core import Autoencodes, Classifies, Describes, Generates

    abilities = {
        "generates": Generates,
        "autoencodes": Autoencodes,
        "describes": Describes,
        "classifies": Classifies,
    }
    rows: list[dict[str, Any]] = []
    for name in families.names():
        family = families.load(name)
        can = [word for word, protocol in abilities.items() if _has(family, protocol)]
        rows.append(
            {
                "family": name,
                "about": family.about,
                "paper": family.paper,
                "reads": sorted(family.reads),
                "can": can,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("family", "what it is", "paper", "reads", "can", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            f"[bold]{row['family']}",
            row["about"],
            row["paper"],
            ", ".join(row["reads"]),
            ", ".join(row["can"]),
        )
    Console(highlight=False).print(table)
    return 0


def _has(family: type, protocol: type) -> bool:
    methods = [name for name in vars(protocol) if not name.startswith("_")]
    return all(callable(getattr(family, name, None)) for name in methods)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo, "data": data, "train": train, "sample": sample, "evaluate": evaluate, "compare": compare,
    "show": show, "families": list_families,
}  # fmt: skip


def run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if argv else MISTAKE
    if argv[0] in ("-V", "--version"):
        from limner import __version__

        print(f"limner {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise LimnerError(f"There is no command {argv[0]!r}.{nearest(argv[0], COMMANDS)} See limner --help.")
    return COMMANDS[argv[0]](argv[1:])


def main() -> None:
    """The entry point: a person's mistake is one sentence and exit code 2, never a traceback."""
    warnings.showwarning = lambda message, *_, **__: print(f"limner: {message}", file=sys.stderr)
    try:
        code = run(sys.argv[1:])
    except LimnerError as mistake:
        print(f"limner: {mistake}", file=sys.stderr)
        code = MISTAKE
    except KeyboardInterrupt:
        print("limner: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    main()
