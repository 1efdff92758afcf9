"""Which pictures `limner apply` reads, and to which files it writes; what an unfinished call left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner import files
from limner.data.images.formats import SUFFIXES
from limner.data.sources.folder import Folder
from limner.inference.options import ApplyOptions
from limner.pictures.writing import FORMATS, check_suffix
from limner.settings import LimnerError

RECORD = ".limner-apply.json"  # in a folder of results: what they were made with
# In a record: the times of results of earlier calls that --overwrite has still to replace, by name.
OLD = "old"


@dataclass(frozen=True)
class Job:
    name: str  # relative to the folder of pictures
    source: Path
    target: Path


@dataclass(frozen=True)
class Work:
    """The pictures of a call."""

    jobs: list[Job]
    source: Path
    folder: Path | None  # of the results; None: one file
    sheet: Path  # of details


def jobs_of(source: Path, to: Path, options: ApplyOptions) -> Work:
    """What is to be made. Raises LimnerError for names that cannot be."""
    if source.is_dir():
        return _of_folder(source, to, options)
    if not source.exists():
        raise LimnerError(f"There is neither a picture nor a folder at {source}.")
    if to.suffix and not to.is_dir():
        if options.suffix:
            raise LimnerError(f"--suffix is for folders, and {to} names a file: leave it out.")
        check_suffix(to.suffix)
        target, folder, sheet = to, None, to.with_name(f"{to.stem}-crops.png")
    else:
        target, folder, sheet = to / _renamed(source.name, options), to, to / "crops.png"
    files.refuse_to_replace(target, [source])
    files.check_writable(target)
    return Work([Job(source.name, source, target)], source, folder, sheet)


def _of_folder(source: Path, to: Path, options: ApplyOptions) -> Work:
    if to.suffix.lower() in FORMATS and not to.is_dir():
        raise LimnerError(f"{source} is a folder, so --to has to be one, and {to} names a file.")
    inside = to.resolve()
    if inside == source.resolve() or source.resolve() in inside.parents:
        raise LimnerError(
            f"--to {to} lies inside {source}, whose pictures are read, so results would be taken for pictures: name a "
            "folder elsewhere."
        )
    files.check_writable(to, folder=True)
    names = sorted(name for name in Folder(source).files if os.path.splitext(name)[1].lower() in SUFFIXES)
    if not names:
        raise LimnerError(f"{source} holds no pictures.")
    targets: dict[str, str] = {"crops.png": "the sheet of --crops"} if options.crops else {}
    for name in names:
        target = _renamed(name, options)
        if other := targets.get(target.lower()):
            raise LimnerError(f"{name} and {other} would both become {target}: rename one of them.")
        targets[target.lower()] = name
    jobs = [Job(name, source / name, to / _renamed(name, options)) for name in names]
    return Work(jobs, source, to, to / "crops.png")


def _renamed(name: str, options: ApplyOptions) -> str:
    """The name of the result, in a format that is written."""
    stem, suffix = os.path.splitext(name)
    if options.suffix:
        return f"{stem}.{options.suffix}"
    return name if suffix.lower() in FORMATS else f"{stem}.png"


def begin(work: Work, settings: Mapping[str, Any], overwrite: bool) -> list[Job]:
    """The pictures that are still to be made. Raises LimnerError where a file of another call is in the way."""
    there = {job.target for job in work.jobs if os.path.lexists(job.target)}
    if work.folder is None:
        if there and not overwrite:
            raise LimnerError(f"{work.jobs[0].target} exists already: add --overwrite, or name another --to.")
        return work.jobs
    for place in {
        job.target.parent for job in work.jobs
    }:  # of a call killed just after a result became whole
        files.clear_unfinished(place)
    made_with = {"source": os.fsdecode(work.source.resolve()), **settings}
    record, before, old = work.folder / RECORD, None, {}
    with contextlib.suppress(OSError, LimnerError):
        before = files.read_json(record)
        old = before.pop(OLD, {})
    if there and not overwrite and before != made_with:
        differ = sorted(key for key in made_with if before and before.get(key) != made_with[key])
        how = f"was made with other settings ({', '.join(differ)})" if differ else "exists already"
        raise LimnerError(f"{min(there)} {how}: add --overwrite, or name another --to.")
    if overwrite:
        old = {job.name: _time_of(job.target) for job in work.jobs if job.target in there}
    if overwrite or before != made_with:
        files.write_json(record, made_with | ({OLD: old} if old else {}))
    return [job for job in work.jobs if job.target not in there or old.get(job.name) == _time_of(job.target)]


def _time_of(path: Path) -> int:
    return path.lstat().st_mtime_ns
