"""A run of a toy family, and the real command that finds it."""

from __future__ import annotations

import sys
from pathlib import Path

from limner import api, families
from tests.helpers import paint

ROOT = Path(__file__).parents[2]
TOYS = str(ROOT / "tests" / "toy")
COMMAND = [sys.executable, str(ROOT / "tests" / "toy_command.py")]


def painter(folder: Path) -> Path:
    """A run of ``painter`` on pictures of 16x16, in a folder of that name."""
    pictures = paint(folder / "pictures", 8)
    path = families.__path__
    families.__path__ = [*path, TOYS]
    try:
        api.train("painter", pictures, folder / "painter", preset="tiny", budget="8img", size=16, quiet=True)
    finally:
        families.__path__ = path
    return folder / "painter"
