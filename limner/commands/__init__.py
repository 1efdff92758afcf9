"""What the commands share. Each takes its arguments and returns an exit code; help answers without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MISTAKE, INTERRUPTED = 2, 130  # exit codes; a training stopped by a signal exits with 128 + its number


def name_the_run(command: str) -> str:
    return f"Name the run first, and what else you ask for behind it: limner {command} RUN ..."


def say(text: str) -> None:
    """A line on the terminal, as it is: paths in brackets are no markup."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], bold: bool = False) -> None:
    """A table on the terminal, its first column in bold or not; cells are no markup, since they may be file names."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, show_header=any(heads))
    for i, head in enumerate(heads):
        drawn.add_column(head, style="bold" if bold and i == 0 else None)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(drawn)
