"""Options of the server. Nothing here imports torch, so that help is quick."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from limner.fields import Bounds, Checked
from limner.settings import LimnerError, ThreadCount

LOOPBACK = "127.0.0.1", "::1", "localhost"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*(/[A-Za-z0-9][A-Za-z0-9._:-]*)*")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Checked):
    """How a server answers, and what it may be asked."""

    # folders of runs. A run's model id is its folder's name, or the one in ID=RUN, which may hold /
    runs: tuple[str, ...] = ()
    host: str = "127.0.0.1"  # address to listen at; one that other machines reach needs --token-file
    port: Annotated[int, Bounds(0, 65535)] = 8000  # port to listen at; 0: any free one, which is said
    # file that only you can read (mode 600), with a name and a token on each line: requests must bear one of them
    token_file: str = ""
    host_name: tuple[str, ...] = ()  # name by which clients reach this server, beside those of this machine
    # folder of jobs, which outlive a restart. Default: serve/PORT in the folder of the cache
    state: str = ""
    keep: str = "24h"  # how long a finished job and what it drew are kept: 90s, 30m, 24h, 7d
    drain: str = "30s"  # how long work that has begun may go on after SIGTERM
    # exact: an image has the same bytes whatever is drawn beside it; quick: faster, by the least rounding apart;
    # for comparison, whole: requests that are drawn together begin and end together; single: one image after another
    batching: Literal["exact", "quick", "whole", "single"] = "exact"
    precision: Literal["auto", "float32", "bf16"] = "auto"  # auto: bf16 where it is faster, timed once
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU; auto: one for each processor
    metadata: Literal["off", "on"] = "off"  # on: a PNG says what it was drawn by, its prompt too
    # draw other sizes than a run's own too, enlarged or reduced from it, rather than refuse them
    resize: bool = False
    max_queue: Annotated[int, Bounds(1, 2**20)] = 256  # images that wait, in all; beyond it requests get 429
    max_client: Annotated[int, Bounds(1, 2**20)] = 64  # images that wait, of one client
    # seconds after which a request that is not answered is given up; 0: never. Jobs have no such limit
    request_seconds: Annotated[float, Bounds(0, 86400)] = 600.0

    def __post_init__(self) -> None:
        """Raises LimnerError for a duration that is none, and for a public address without tokens."""
        super().__post_init__()
        for name in ("keep", "drain"):
            seconds_of(getattr(self, name), f"--{name}")
        if self.host not in LOOPBACK and not self.token_file:
            raise LimnerError(
                f"--host {self.host} lets other machines in, so it needs --token-file: name a file with a name and a "
                "token on each line, or leave --host out."
            )

    @property
    def keep_seconds(self) -> float:
        return seconds_of(self.keep, "--keep")

    @property
    def drain_seconds(self) -> float:
        return seconds_of(self.drain, "--drain")

    @classmethod
    def of(cls, given: object) -> ServeOptions:
        """These fields out of all options of a command."""
        return cls(**{f.name: getattr(given, f.name) for f in fields(cls)})


def seconds_of(text: str, flag: str) -> float:
    """Seconds of 90s, 30m, 24h or 7d. Raises LimnerError."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", text.strip())
    if not found:
        raise LimnerError(f"{flag} {text!r} is not a length of time: use 90s, 30m, 24h or 7d.")
    return float(found[1]) * _UNITS[found[2]]


def named_runs(runs: tuple[str, ...]) -> dict[str, str]:
    """Model id -> path, in the order given. Raises LimnerError for none, a bad id, and one that stands there twice."""
    if not runs:
        raise LimnerError("Name at least one run to serve: limner serve RUN [OPTIONS].")
    named: dict[str, str] = {}
    for text in runs:
        name, path = _split(text)
        if not _ID.fullmatch(name):
            raise LimnerError(
                f"{name!r} cannot be a model id: use letters, digits, '.', '_', '-' and '/', as in ID=RUN."
            )
        if name in named:
            raise LimnerError(f"Two runs have the model id {name!r}: give one of them another, as in ID=RUN.")
        named[name] = path
    return named


def _split(text: str) -> tuple[str, str]:
    """The id and the path of RUN or ID=RUN."""
    name, equals, path = text.partition("=")
    if equals and path and _ID.fullmatch(name):
        return name, path
    folder = text.rstrip("/").removesuffix("/model.safetensors")
    return re.sub(r"[^A-Za-z0-9._:-]+", "-", folder.rpartition("/")[2]).strip("-._:") or "run", text
