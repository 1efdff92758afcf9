"""What the commands share. Each takes its arguments and returns an exit code; help answers without torch."""

from __future__ import annotations

MISTAKE, INTERRUPTED = 2, 130  # exit codes; a training stopped by a signal exits with 128 + its number


def say(text: str) -> None:
    """A line on the terminal, with rich's markup."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text)
