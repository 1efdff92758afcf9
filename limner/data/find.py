"""The source that a text names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from limner.data.annotate import annotate
from limner.data.archive import archives
from limner.data.builtin import digits, emoji, shapes
from limner.data.decode import SUFFIXES
from limner.data.folder import Folder
from limner.data.folder_names import hidden
from limner.data.labels import RULES, by_path
from limner.data.sources import Source, opener_of, printable, stamp
from limner.data.table import hub, parquet
from limner.settings import BUILT_IN, LimnerError, nearest

_OPENERS: dict[str, Callable[[], Source]] = {"shapes": shapes, "digits": digits, "emoji": emoji}
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def find(text: str, scratch: Path, classes: str = "") -> Source:
    """The source that `text` names. Raises LimnerError.

    `scratch` is a folder for temporary files, `classes` that of `DataOptions`.
    """
    if text in _OPENERS:
        return _OPENERS[text]()
    if text.startswith("hf:"):
        return hub(text)
    if not text:
        raise LimnerError(f"No source was named.{_hint(text)}")
    path = Path(text).expanduser()
    if path.is_dir():
        folder = Folder(path)
        kinds = {PurePosixPath(name).suffix.lower() for name in folder.files}
        if kinds & SUFFIXES or not kinds & {".parquet", ".tar"}:
            return folder.source(text, classes)
        suffix = ".parquet" if ".parquet" in kinds else ".tar"
        files = [path / name for name in folder.files if name.lower().endswith(suffix)]
        return parquet(text, files) if suffix == ".parquet" else archives(text, files, scratch, classes)
    matches = [path]
    if not path.is_file():
        matches = [Path(p) for word in _braces(str(path)) for p in sorted(glob.glob(word, recursive=True))]
    if not matches:
        raise LimnerError(f"There is no source {text!r}.{_hint(text)}")
    if all(p.suffix == ".parquet" for p in matches):
        return parquet(text, matches)
    if all(p.name.lower().endswith(ARCHIVES) for p in matches):
        return archives(text, matches, scratch, classes)
    if not all(p.suffix.lower() in SUFFIXES for p in matches):
        known = f"a folder, image, archive ({', '.join(ARCHIVES)}) or .parquet file"
        raise LimnerError(f"{text!r} is not {known} that Limner can read.")
    parent = Path(os.path.commonpath([p.parent for p in matches]))  # below it, folders are labels
    names = {p.relative_to(parent).as_posix(): p for p in matches}
    key = ["images", RULES, classes, *((name, *stamp(p.stat())) for name, p in names.items())]
    openers = {name: opener_of(p) for name, p in names.items() if not hidden(name)}
    return Source(text, key, lambda: by_path(annotate(openers), classes))


def _hint(text: str) -> str:
    parent = Path(text).expanduser().parent
    beside: list[Path] = []
    with suppress(OSError):
        beside = [p for p in parent.iterdir() if not p.name.startswith(".")]
    hint = nearest(text, [*BUILT_IN, *(printable(str(p)) for p in beside)])
    return hint or f" Name a folder, an archive, hf:owner/name, or one of {', '.join(BUILT_IN)}."


def _braces(text: str) -> list[str]:
    """'a-{000..002}.tar' -> three names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if not match:
        return [text]
    first, last = match.groups()
    words = (f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1))
    return [rest for word in words for rest in _braces(text[: match.start()] + word + text[match.end() :])]
