"""Settings as plain nested dataclasses: to JSON and back, and from the command line.

A dataclass is the one source of truth: its fields are the flags, its defaults the preset's values, the
comment beside a field its help. Nothing here imports torch until a family is named.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union

import tyro

from limner import families, files
from limner.families import _format1
from limner.settings import DataOptions, LimnerError, Training, nearest

if typing.TYPE_CHECKING:
    from limner.core import Model, Preset

T = TypeVar("T")
C = TypeVar("C")

# ---------------------------------------------------------------------------------------- JSON


def to_json(value: Any) -> Any:
    """Nested dataclasses, tuples and dicts as what JSON can hold; ``from_json`` gives them back."""
    if isinstance(value, JsonResult):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a config")


class JsonResult:
    """Base of the frozen dataclasses that commands return.

    In its JSON, a field whose default is None is absent while it is None, and a field with the metadata
    ``INLINE`` is replaced by its own fields.
    """

    def to_json(self) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                entries |= to_json(value) if f.metadata.get("inline") else {f.name: to_json(value)}
        return entries


INLINE = {"inline": True}


def from_json(cls: type[T], data: Any, where: str = "model") -> T:
    """Build the dataclass ``cls`` from JSON; ``where`` is the dotted path that errors begin with.

    Strict: an unknown key or a value of another type is a LimnerError. Keys left out take their defaults.
    """
    return _read(cls, data, where)


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin is Annotated:
        return _read(inner[0], data, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    if origin in (Union, types.UnionType):
        return _read_union(inner, data, where)
    if origin is Literal:
        if any(data == choice and type(data) is type(choice) for choice in inner):
            return data
        hint = nearest(data, [c for c in inner if isinstance(c, str)]) if isinstance(data, str) else ""
        raise LimnerError(f"{where} must be {_name(kind)}, not {data!r}.{hint}")
    if origin is tuple and isinstance(data, (list, tuple)):
        kinds = inner[:1] * len(data) if inner[1:] == (...,) else inner
        if len(kinds) == len(data):
            return tuple(
                _read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, data, strict=True))
            )
    if origin is list and isinstance(data, list):
        return [_read(inner[0], value, f"{where}[{i}]") for i, value in enumerate(data)]
    if origin is dict and isinstance(data, dict):
        return {key: _read(inner[1], value, f"{where}.{key}") for key, value in data.items()}
    if kind is float and type(data) is int:
        return float(data)
    if kind in (bool, int, float, str, type(None)) and type(data) is kind:
        return data
    raise LimnerError(f"{where} must be {_name(kind)}, not {data!r}.")


def _read_dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise LimnerError(f"{where} must be a table of settings, not {data!r}.")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key not in fields:
            hint = nearest(str(key), fields) or f" There are {', '.join(fields)}."
            raise LimnerError(f"{where}.{key} is not a setting.{hint}")
    for name, f in fields.items():
        if name not in data and f.default is f.default_factory is dataclasses.MISSING:
            raise LimnerError(f"{where}.{name} is missing.")
    hints = typing.get_type_hints(cls, include_extras=True)
    return cls(**{key: _read(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _read_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    # A value's own type goes first, so that 1 stays an int under float | int.
    for kind in sorted(kinds, key=lambda kind: kind is not type(data)):
        try:
            return _read(kind, data, where)
        except LimnerError:
            continue
    tables = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if isinstance(data, dict) and len(tables) == 1:
        return _read(tables[0], data, where)  # the error within says more than "must be A or B"
    raise LimnerError(f"{where} must be {' or '.join(map(_name, kinds))}, not {data!r}.")


def _name(kind: Any) -> str:
    """A type in the words of someone who does not read Python."""
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    inner = typing.get_args(kind)
    if kind in plain:
        return plain[kind]
    if typing.get_origin(kind) is Literal:
        return " or ".join("null" if choice is None else str(choice) for choice in inner)
    if typing.get_origin(kind) is tuple and inner[1:] != (...,):
        return f"a list of {len(inner)} values"
    if typing.get_origin(kind) in (tuple, list):
        return f"a list, each entry {_name(inner[0])}"
    return "a table of settings"


# ---------------------------------------------------------------------------------------- one training


@dataclass(frozen=True)
class Run:
    """What one training is: all it needs to be done again. ``config.json`` and every checkpoint hold it."""

    family: str
    sources: tuple[str, ...]
    preset: str
    size: tuple[int, int] | None  # (height, width); None: as the data has it
    budget: str
    seed: int
    model: Any  # the family's Config
    training: Training
    data: DataOptions

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, data: Any) -> Run:
        run = from_json(cls, data, "run")
        return dataclasses.replace(run, model=from_json(families.load(run.family).Config, run.model))


class Migration(NamedTuple):
    """From files of one format to the next."""

    run: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]  # (run, spec) as JSON -> run
    weight: Callable[[str, str], str]  # (family, name of a weight) -> name


FORMAT = 2  # of config.json and of the header of every model file
MIGRATIONS = {1: Migration(_format1.settings, _format1.weight)}


def migrate_run(run: Mapping[str, Any], spec: Mapping[str, Any], version: int) -> dict[str, Any]:
    """A run's JSON of format ``version`` as this one writes it; ``spec`` is that of its images."""
    for number in range(version, FORMAT):
        run = MIGRATIONS[number].run(run, spec)
    return dict(run)


def write_run(folder: str | Path, run: Run) -> None:
    """Write a run's ``config.json`` whole or not at all."""
    files.write_json(Path(folder) / "config.json", {"format": FORMAT, **run.to_json()})


def read_run(folder: str | Path) -> Run:
    """The ``config.json`` of a run's folder, of this format or an earlier one."""
    path = Path(folder) / "config.json"
    try:
        saved = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise LimnerError(f"{folder} holds no run: there is no {path}.") from None
    except ValueError as error:
        raise LimnerError(f"{path} cannot be read as JSON: {error}.") from None
    if isinstance(saved, dict) and (version := saved.pop("format", 1)) in MIGRATIONS:
        saved = migrate_run(saved, _spec_of(Path(folder), saved.get("size")), version)
    return Run.from_json(saved)


def _spec_of(folder: Path, size: Any) -> dict[str, Any]:
    """What a run's images are, as JSON: as its model file says, or by its settings, or as is usual."""
    try:
        with open(folder / "model.safetensors", "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return dict(json.loads(header["__metadata__"]["limner"])["spec"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        height, width = size if isinstance(size, list) and len(size) == 2 else (32, 32)
        return {"height": height, "width": width}


class Budget(NamedTuple):
    """How long something lasts."""

    amount: float
    unit: Literal["seconds", "images"]

    def share(self, seconds: float, images: int) -> float:
        """The share of the budget that is spent: 1 and above is all of it."""
        return (seconds if self.unit == "seconds" else images) / self.amount


def parse_budget(text: str, epoch: int) -> Budget:
    """'90s', '4m', '1.5h', '5000img', '200kimg' or '50epochs'; ``epoch`` is how many images there are."""
    scales = {"s": 1, "m": 60, "h": 3600, "img": 1, "kimg": 1000, "epoch": epoch, "epochs": epoch}
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z]+)", text.strip().lower())
    amount = float(match[1]) * scales.get(match[2], 0) if match else 0
    if not match or not 0 < amount < float("inf"):
        raise LimnerError(f"{text!r} is no length of training: write 90s, 4m, 1.5h, 200kimg or 50epochs.")
    return Budget(amount, "seconds" if match[2] in ("s", "m", "h") else "images")


def parse_size(text: str) -> tuple[int, int]:
    """'32' or '64x48' (height x width) -> (height, width) in pixels."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?:\s*[x×]\s*([1-9]\d{0,4}))?", text.strip().lower())
    if not match:
        raise LimnerError(f"{text!r} is no image size: write one side, as 32, or HEIGHTxWIDTH, as 64x48.")
    return int(match[1]), int(match[2] or match[1])


def find_preset(family: type[Model], name: str) -> Preset:
    """A family's preset by its name."""
    if name not in family.presets:
        hint = nearest(name, family.presets) or f" There are {', '.join(family.presets)}."
        raise LimnerError(f"{family.family} has no preset {name!r}.{hint}")
    return family.presets[name]


def default_preset() -> str:
    """'small' on a CPU, 'base' on a GPU."""
    import torch

    return "base" if torch.cuda.is_available() else "small"


# ---------------------------------------------------------------------------------------- command line
#
# The flags depend on what the first argument names, so each command is parsed in two stages: the family and
# its preset are looked up first, then tyro builds every flag from the dataclasses, with the preset's values
# as defaults.


Source = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE...")]
RunFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class _Train:
    """Train on images of your own. Name a family to see its settings too: limner train FAMILY --help"""

    sources: Source = ()  # folder, zip, tar, parquet, hf:owner/name; shapes, digits, emoji
    out: str = ""  # folder that the run is kept in
    preset: str = ""  # tiny, small, base or paper; without it small on a CPU, base on a GPU
    budget: str = "10m"  # how long: 90s, 20m, 1.5h, 200kimg, 50epochs
    size: str = (
        ""  # 32, or HEIGHTxWIDTH as 64x48; without it the images' own, if all share one of 16 to 64, else 32
    )
    seed: int = 0  # the same seed gives the same run
    resume: bool = False  # go on from the newest checkpoint in --out, with its settings


@dataclass(frozen=True, kw_only=True)
class _TrainFamily(_Train, Generic[C]):
    __doc__ = _Train.__doc__
    model: C
    training: Training
    data: DataOptions


class TrainArguments(NamedTuple):
    run: Run
    out: str
    resume: bool


@dataclass(frozen=True)
class _Describe:
    """List the families; or, for the one that is named, show its settings and count its parameters."""

    family: tyro.conf.Suppress[str] = ""
    preset: str = "small"  # tiny, small, base or paper
    size: str = ""  # of the images: 32, or HEIGHTxWIDTH as 64x48; without it the preset's, or 32
    channels: int | None = None  # 1 grey, 3 RGB, 4 RGBA; without it the preset's, or 3
    classes: int = 0  # labels that the images have
    json: bool = False  # for programs to read


@dataclass(frozen=True, kw_only=True)
class _DescribeFamily(_Describe, Generic[C]):
    __doc__ = _Describe.__doc__
    model: C


@dataclass(frozen=True)
class _Sample:
    """Draw new images from a run."""

    run: RunFolder  # folder of a run, or its model.safetensors
    n: int | None = (
        None  # images; several prompts or labels take turns; without it 64, or 8 for each of those
    )
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # what to show; may be given again
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # which class to show; may be given again
    seed: int = 0  # the same seed draws the same images
    between: tuple[int, int] | None = (
        None  # two seeds: the way from the one's image to the other's, in N images
    )
    image: str = ""  # picture to start from, noised by --strength: variations of it, or other labels for it
    mask: str = ""  # picture that is white where --image is to be drawn anew; the rest stays
    to: str = ""  # a .png for one grid, or a folder for one file an image; without it samples.png in RUN
    progress_to: str = ""  # a .gif of how the images come out of the noise
    batch: int = 64  # images drawn at once
    device: str = "auto"  # auto, cpu, cuda


@dataclass(frozen=True, kw_only=True)
class _SampleFamily(_Sample, Generic[C]):
    __doc__ = _Sample.__doc__
    sampling: tyro.conf.OmitArgPrefixes[C]


@dataclass(frozen=True)
class _Synthesize:
    """Make a folder of labelled or captioned images that limner train reads; the same call again goes on.

    Without --label or --prompt every class comes as often, or the captions of --prompts-from take turns.
    """

    run: RunFolder  # folder of a run, or its model.safetensors
    to: str = ""  # folder for the images, metadata.jsonl and provenance.json
    n: int = 10_000  # images that the folder is to hold
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # only this class; may be given again
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # what to show; may be given again
    prompts_from: str = ""  # source whose captions are taken; without it the images that the run learnt from
    like: str = ""  # source: keep only images that look like one of its training images
    new: str = ""  # source: leave out images nearer to one of its training images than held-out ones are
    classifier: str = ""  # run that classifies: keep only images that it takes for what was asked
    confidence: float = 0.9  # least probability that --classifier gives the asked class
    features: str = "random"  # what --like and --new compare by: random, inception, clip, dinov2, or a run
    weights: str = ""  # file or folder of the features' weights, where they need any
    seed: int = 0  # of the first image drawn; each image has its own
    batch: int = 64  # images drawn at once
    device: str = "auto"  # auto, cpu, cuda


@dataclass(frozen=True, kw_only=True)
class _SynthesizeFamily(_Synthesize, Generic[C]):
    __doc__ = _Synthesize.__doc__
    sampling: tyro.conf.OmitArgPrefixes[C]


@dataclass(frozen=True)
class _Evaluate:
    """Measure a run, or a folder of images that any program made, against real images."""

    what: tyro.conf.Positional[str]  # folder of a run, or of images
    sources: tyro.conf.Positional[tuple[str, ...]]  # the real images
    n: int | None = None  # images to draw or take; default: 1000, or as many as are real
    features: str = "random"  # random, inception, clip, dinov2, or a run that describes images
    weights: str = ""  # file or folder of the features' weights, where they need any
    labels_per_class: int = 0  # also probe a run's features with so many labelled images a class
    to: str = ""  # folder for evaluation.json and pictures; default: RUN/evaluation
    seed: int = 0  # of the first image drawn
    as_training_data: bool = (
        False  # also: does a classifier learn from the run's images what it does from real
    )
    classifier_family: str = families.CLASSIFIER  # what is trained for it
    classifier_preset: str = ""  # tiny, small, base or paper; default: small on a CPU, base on a GPU
    classifier_budget: str = "60kimg"  # how long, each time: the same for real, synthetic and both
    repeats: int = 1  # classifiers of each kind, each with another seed
    json: bool = False  # for programs to read


@dataclass(frozen=True, kw_only=True)
class _EvaluateFamily(_Evaluate, Generic[C]):
    __doc__ = _Evaluate.__doc__
    sampling: tyro.conf.OmitArgPrefixes[C]


def parse_train(argv: Sequence[str]) -> TrainArguments:
    """The arguments of ``limner train``; --help, and a flag it cannot use (code 2), end the program here."""
    if not argv or argv[0].startswith("-"):
        _parse(_Train, argv, "limner train FAMILY")  # --help ends here
        raise LimnerError("Name the family first, then what to train on: limner train FAMILY SOURCE...")
    family = families.load(argv[0])
    start = _saved_run(argv) if "--resume" in argv else _preset_run(family, argv)
    values = {f.name: getattr(start, f.name) for f in dataclasses.fields(Run) if f.name != "family"}
    values["size"] = "x".join(map(str, start.size)) if start.size else ""
    given = _parse(_TrainFamily, argv[1:], f"limner train {argv[0]}", family.Config, _TrainFamily(**values))
    if not given.sources:
        raise LimnerError("Name what to train on: a folder of images, or one of shapes, digits and emoji.")
    if not given.out:
        raise LimnerError(f"Say where to keep the run, for instance --out runs/{argv[0]}.")
    parse_budget(given.budget, epoch=1)  # a mistake shows now, not after the data is packed
    values = {name: getattr(given, name) for name in values}
    values["size"] = parse_size(given.size) if given.size else None
    return TrainArguments(Run(family=argv[0], **values), given.out, given.resume)


def parse_families(argv: Sequence[str]) -> Any:
    """The arguments of ``limner families [FAMILY]``; ``model`` is the config of the family that is named."""
    if not argv or argv[0].startswith("-"):
        return _parse(_Describe, argv, "limner families [FAMILY]")
    family = families.load(argv[0])
    name = early(argv, "--preset") or _Describe.preset
    preset = find_preset(family, name)
    size = "x".join(map(str, preset.size)) if preset.size else ""
    default = _DescribeFamily(argv[0], name, size, preset.channels, model=preset.model)
    return _parse(_DescribeFamily, argv[1:], f"limner families {argv[0]}", family.Config, default)


def parse_sample(argv: Sequence[str], knobs: type | None = None) -> Any:
    """The arguments of ``limner sample``; the fields of ``knobs``, a family's Sampling, are flags too."""
    return _parse(_SampleFamily if knobs else _Sample, argv, "limner sample", knobs)


def parse_evaluate(argv: Sequence[str], knobs: type | None = None) -> Any:
    """The arguments of ``limner evaluate``; the fields of ``knobs``, a family's Sampling, are flags too."""
    return _parse(_EvaluateFamily if knobs else _Evaluate, argv, "limner evaluate", knobs)


def parse_synthesize(argv: Sequence[str], knobs: type | None = None) -> Any:
    """The arguments of ``limner synthesize``; the fields of ``knobs``, a family's Sampling, are flags too."""
    return _parse(_SynthesizeFamily if knobs else _Synthesize, argv, "limner synthesize", knobs)


def knobs_of(given: Any) -> dict[str, Any]:
    """The fields of the family's Sampling in what ``parse_sample`` and its like return, if it has any."""
    sampling = getattr(given, "sampling", None)
    return {f.name: getattr(sampling, f.name) for f in dataclasses.fields(sampling)} if sampling else {}


def _preset_run(family: type[Model], argv: Sequence[str]) -> Run:
    name = early(argv, "--preset") or default_preset()
    preset = find_preset(family, name)
    return Run(
        family=argv[0],
        sources=(),
        preset=name,
        size=preset.size,
        budget=_Train.budget,
        seed=_Train.seed,
        model=preset.model,
        training=preset.training,
        data=from_json(DataOptions, {"channels": preset.channels}, "data"),
    )


def _saved_run(argv: Sequence[str]) -> Run:
    """The run that --resume goes on with; flags may change what they name."""
    out = early(argv, "--out")
    if not out:
        raise LimnerError("Say which run to resume: --out RUN --resume.")
    run = read_run(out)
    preset = early(argv, "--preset") or run.preset
    if (argv[0], preset) != (run.family, run.preset):
        raise LimnerError(
            f"{out} is a run of {run.family} from the preset {run.preset}, so it cannot resume as "
            f"{argv[0]} from {preset}: name those, or choose another --out."
        )
    return run


def _parse(flags: Any, argv: Sequence[str], prog: str, family: Any = None, default: Any = None) -> Any:
    """Read ``flags``, of which ``family`` is the part that the family declares."""
    kind = flags[family] if family else flags
    config = (tyro.conf.AvoidSubcommands,)  # which of several dataclasses is the preset's choice
    return tyro.cli(kind, prog=prog, args=list(argv), default=default, config=config)


def early(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag that other flags' defaults depend on; tyro reads it again with all the rest."""
    for here, after in itertools.pairwise([*argv, ""]):
        if here == flag:
            return after
        if here.startswith(f"{flag}="):
            return here.removeprefix(f"{flag}=")
    return None
