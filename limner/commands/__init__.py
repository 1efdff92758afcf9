"""The commands, one file each, by name: ``run(argv)`` returns an exit code, or None for 0; help needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

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

    drawn = Table(box=None, pad_edge=False, show_header=any(heads))
    for i, head in enumerate(heads):
        drawn.add_column(head, style="bold" if bold and i == 0 else None)
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console(highlight=False).print(drawn)
