"""How a command reads its arguments: the fields of a dataclass become flags, a field's comment its help.

The flags of some commands depend on a family: of the run that the first argument names, or named itself. Those
commands parse twice: they look the family up first, then read every flag. Nothing here imports torch until
a family is named.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from limner import families
from limner.fields import check
from limner.settings import LimnerError, NoSampling

Config = TypeVar("Config")
Sampling = TypeVar("Sampling")
Selected = TypeVar("Selected")

HIDDEN = tyro.conf.arg(help_behavior_hint="")  # no "(default: ...)"
Sources = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE..."), HIDDEN]
RunFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
RunOrImages = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Folder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
Picture = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
Flag = tyro.conf.FlagCreatePairsOff[bool]  # off unless it is there
Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions(Generic[Sampling]):
    """Adds the sampling options of the run's family to those of a command."""

    sampling: tyro.conf.OmitArgPrefixes[Sampling]


def parse(
    options: Any, argv: Sequence[str], command: str, default: Any = None, use_threads: bool = True
) -> Any:
    """``argv`` as ``options``, a dataclass; --help, and a flag that is not valid (code 2), end the program here.

    A field ``threads`` sets on how many this process runs its networks, unless another process does. Raises LimnerError
    for a number that is out of bounds.
    """
    given = tyro.cli(
        options, prog=f"limner {command}", args=list(argv), default=default, registry=_registry(),
        config=(tyro.conf.AvoidSubcommands,),  # which of several dataclasses is the preset's choice
    )  # fmt: skip
    check(given, "--")
    if use_threads and (threads := getattr(given, "threads", None)):
        from limner.inference.threads import THREADS

        THREADS.use(threads)
    return given


def parse_for_run(options: Any, argv: Sequence[str], command: str) -> Any:
    """Parse a command whose first argument is a run, with the sampling options of the run's family.

    ``options`` is generic in those. Raises LimnerError where the run does not come first.
    """
    if not argv or argv[0].startswith("-"):
        if argv:
            parse(options[NoSampling], argv, command)  # --help ends here
        raise LimnerError(f"The run comes first, then the options: limner {command} RUN [OPTIONS].")
    from limner import checkpoint

    family = families.load(checkpoint.family_of(argv[0]))
    return parse(options[family.Sampling], argv, command)


def select(options: type[Selected], given: Any) -> Selected:
    """The fields of a dataclass of options, out of all options of a command."""
    return options(**{f.name: getattr(given, f.name) for f in dataclasses.fields(options)})  # type: ignore[arg-type]


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag that the other flags depend on; ``parse`` reads it again with them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", nargs="?")
    return parser.parse_known_args(argv)[0].value


def _registry() -> ConstructorRegistry:
    """tyro's rules, except that help does not show empty defaults: the help text says what leaving it out means."""
    registry = ConstructorRegistry()
    within = False  # the rule below calls tyro's own rules

    @registry.struct_rule
    def hide_empty_defaults(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal within
        if within:
            return None
        within = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            within = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = [
            dataclasses.replace(field, type=Annotated[field.type, HIDDEN])  # type: ignore[arg-type]
            if field.default is None or field.default == ""
            else field
            for field in spec.fields
        ]
        return dataclasses.replace(spec, fields=tuple(fields))

    return registry
