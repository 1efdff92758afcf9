"""The one progress bar of long work, on the terminal's error stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Watch = Callable[[float], None]  # is called with the share done, in [0, 1]


def ignore(share: float) -> None:
    """A Watch that shows nothing."""


def part(watch: Watch, start: float, size: float) -> Watch:
    """The Watch of a part of the work that begins when ``start`` of all is done, and is ``size`` of it."""
    return lambda share: watch(start + size * share)


@contextlib.contextmanager
def bar(description: str, quiet: bool = False) -> Iterator[Watch]:
    """A progress bar; yields its Watch."""
    from rich.console import Console

    with rich_progress(Console(stderr=True), quiet) as progress:
        task = progress.add_task(description, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def rich_progress(console: Console, quiet: bool, *fields: str) -> Progress:
    """The columns of every bar: description, bar, share done, time left, and named ``fields`` of its task."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)  # it may hold file names
    shown = [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in fields]
    columns = text, BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), *shown
    return Progress(*columns, console=console, transient=True, disable=quiet)
