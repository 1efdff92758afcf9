"""The one progress bar of long work, on the terminal's error stream."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Watch = Callable[[float], None]  # is called with the share done, in [0, 1]
EVERY = 20.0  # seconds from one line to the next, where there is no terminal that shows a bar


def ignore(share: float) -> None:
    """A Watch that shows nothing."""


def part(watch: Watch, start: float, size: float) -> Watch:
    """The Watch of a part of the work that begins when ``start`` of all is done, and is ``size`` of it."""
    return lambda share: watch(start + size * share)


@contextlib.contextmanager
def bar(description: str, quiet: bool = False) -> Iterator[Watch]:
    """A progress bar, or a line every EVERY seconds where there is no terminal, as in a log; yields its Watch."""
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    if not (console.is_terminal or console.is_jupyter):  # a bar would leave an empty line there
        yield _lines(console, description)
        return
    with rich_progress(console, quiet) as progress:
        task = progress.add_task(description, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def _lines(console: Console, description: str) -> Watch:
    said = time.monotonic()

    def watch(share: float) -> None:
        nonlocal said
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            console.print(f"{description}: {share:.0%}", markup=False, highlight=False, soft_wrap=True)

    return watch


def rich_progress(console: Console, quiet: bool, *fields: str) -> Progress:
    """The columns of every bar: description, bar, share done, time left, and named ``fields`` of its task."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)  # it may hold file names
    shown = [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in fields]
    columns = text, BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), *shown
    return Progress(*columns, console=console, transient=True, disable=quiet)
