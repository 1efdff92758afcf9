"""The commands, one file each, by name: ``run(argv)`` returns an exit code, or None for 0; help needs no torch."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

MISTAKE = 2  # exit code; a command that is stopped by a signal exits with 128 + its number


def say(text: str) -> None:
    """Print text as it is: brackets in a path are not markup."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True, emoji=False).print(text, markup=False)


def print_json(value: Any) -> None:
    """Print a result, or anything else that ``config.to_json`` takes."""
    from limner.fields import to_json

    print(json.dumps(to_json(value), ensure_ascii=False, indent=2))


def print_result(result: Any, as_json: bool, summary: str) -> None:
    """Print a result as JSON, or the summary of it."""
    if as_json:
        print_json(result)
    else:
        say(summary)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], bold: bool = False) -> None:
    """Print a table; cells may be file names, so brackets in them are not markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, show_header=any(heads), collapse_padding=len(heads) > 6)
    for i, head in enumerate(heads):
        whole = max(map(len, head.split()), default=0)  # no word of a heading is cut
        drawn.add_column(head, style="bold" if bold and i == 0 else None, min_width=whole)
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console(highlight=False).print(drawn)


# Standard output and errors: a closed pipe or a full disk must not break off the work of a command. -------


class Output:
    """A stream of text that drops what cannot be written and keeps the reason; all else is the stream's own."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.error: OSError | None = None  # the first; none for a pipe whose reader has ended

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Send what follows, and what is still buffered, to nowhere."""
        if error.errno != errno.EPIPE:
            self.error = self.error or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` such streams; one that is closed (``>&-``) goes nowhere.

    Characters that a terminal's encoding lacks, and names of files that are not Unicode, are written as escapes.
    """
    for number in (0, 1, 2):  # else the next file that is opened gets the number
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Output(stream))


def lost_output() -> str:
    """Why results could not be printed; '' where they were, or where nobody reads them any more."""
    sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)
    return (error.strerror or str(error)) if error else ""
