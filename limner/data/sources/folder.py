"""A folder as a source: the files below it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from limner.data.annotations.annotate import annotate
from limner.data.annotations.folder_names import passed_over
from limner.data.annotations.labels import RULES, by_path
from limner.data.images.formats import SUFFIXES
from limner.data.items import FileOpener, Problem, Source, printable, stamp


class Folder:
    """The regular files below a folder, by relative name; links are followed, each folder visited once."""

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[str, tuple[int, int, int]] = {}
        self.skipped: list[Problem] = []
        visited: set[tuple[int, int]] = set()
        waiting = [(str(root), "")]  # not recursive: folders may lie thousands deep
        while waiting:
            path, name = waiting.pop()
            try:
                found = self._add(path, name, visited)
                waiting += [(entry.path, f"{name}/{entry.name}" if name else entry.name) for entry in found]
            except OSError as error:  # such as a link into nowhere, or round in a circle
                self._skip(name, f"cannot be read ({error.strerror})")

    def _add(self, path: str, name: str, visited: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
        """Adds a file; of a folder, returns the entries, the first one last."""
        status = os.stat(path)
        identity = status.st_dev, status.st_ino
        if stat.S_ISREG(status.st_mode):
            self.files[name] = stamp(status)
        elif not stat.S_ISDIR(status.st_mode):
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                self._skip(name, "not a regular file")
        elif identity in visited:
            self._skip(name, "a link to a folder that was read already")
        elif not passed_over(name.rpartition("/")[2]):
            visited.add(identity)
            return sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
        return []

    def _skip(self, name: str, why: str) -> None:
        self.skipped.append(Problem(printable(name), why))

    def source(self, text: str, classes: str = "", clips: str = "") -> Source:
        openers = {name: FileOpener(name, self.root) for name in self.files}
        skipped = self.skipped  # the listing does not keep the folder, whose stamps are many
        key = ["folder", RULES, classes, *((printable(name), *stamp) for name, stamp in self.files.items())]
        return Source(text, key, lambda: by_path(annotate(openers, skipped, clips), classes))
