"""A folder as a source: the files below it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from limner.data.annotations.annotate import annotate
from limner.data.annotations.folder_names import passed_over
from limner.data.annotations.labels import RULES, by_path
from limner.data.annotations.stylegan import with_dataset_json
from limner.data.images.decode import SUFFIXES
from limner.data.items import Listing, Opener, Problem, Source, opener_of, printable, stamp


class Folder:
    """The regular files below a folder, by relative name; links are followed, each folder visited once."""

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[str, tuple[int, int, int]] = {}
        self.skipped: list[Problem] = []
        self._walk(str(root), "", set())

    def _walk(self, path: str, name: str, visited: set[tuple[int, int]]) -> None:
        """Adds a file, or the files below a folder."""
        place, problem = PurePosixPath(name), ""
        try:
            status = os.stat(path)
            identity = status.st_dev, status.st_ino
            if stat.S_ISREG(status.st_mode):
                self.files[name] = stamp(status)
            elif not stat.S_ISDIR(status.st_mode):
                problem = "not a regular file" if place.suffix.lower() in SUFFIXES else ""
            elif passed_over(place.name):
                return
            elif identity in visited:
                problem = "a link to a folder that was read already"
            else:
                visited.add(identity)
                for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                    self._walk(entry.path, str(place / entry.name), visited)
        except OSError as error:  # such as a link into nowhere, or round in a circle
            problem = f"cannot be read ({error.strerror})"
        if problem:
            self.skipped.append(Problem(printable(name), problem))

    def source(self, text: str, classes: str = "") -> Source:
        openers = {name: opener_of(os.path.join(self.root, name)) for name in self.files}
        key = ["folder", RULES, classes, *((printable(name), *stamp) for name, stamp in self.files.items())]
        return Source(text, key, lambda: self._listing(openers, classes))

    def _listing(self, openers: Mapping[str, Opener], classes: str) -> Listing:
        return by_path(with_dataset_json(annotate(openers, self.skipped), openers), classes)
