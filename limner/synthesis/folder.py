"""Folders of drawn images with metadata.jsonl, which `limner train` reads: written batch by batch, and resumed.

DIR/000000.png ...     the images, each named by its seed; clips in a format of theirs
DIR/metadata.jsonl     a line for each: file_name, seed, and its label and text where it has them
DIR/provenance.json    run, settings, versions, and how many images each filter refused; of ``limner sample`` it
                       is hidden, and there only until the folder is finished
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from limner import files
from limner.core import Condition, ImageSpec, LimnerError
from limner.fields import JsonResult, from_json
from limner.inference.options import ClipOptions
from limner.pictures.clips import ASSUMED_RATE, SUFFIXES, clip_bytes
from limner.pictures.grid import png

SYNTHESIZE, SAMPLE = "limner synthesize", "limner sample"
PROVENANCE = {SYNTHESIZE: "provenance.json", SAMPLE: ".provenance.json"}
METADATA = "metadata.jsonl"
CLIPS = "webp"  # the format of clips in a folder: one file each, without loss, for which Pillow is enough
# Line ends to some programs, though not in JSON Lines; and halves of characters, which UTF-8 does not have.
_SEPARATORS = re.compile("[\x85\u2028\u2029\ud800-\udfff]")
NEW = ".limner-new"  # folder for a drawing while an earlier one still stands
AHEAD = 10_000  # seeds after the last one of a folder that its next batch may have been drawing


@dataclass(frozen=True)
class ImageBatch:
    """Images with all that their metadata says."""

    images: Tensor  # [N, C, H, W] in [-1, 1]; clips [N, C, T, H, W]
    seeds: Sequence[int]
    condition: Condition
    spec: ImageSpec
    scores: Sequence[float] | None = None  # how well each fits its prompt, of images that were chosen by that
    clips: ClipOptions | None = None  # how clips are written

    def name(self, i: int) -> str:
        return f"{self.seeds[i]:06d}{suffix_of(self.clips)}"

    def content(self, i: int) -> bytes:
        """The file of image ``i``."""
        if self.clips is None:
            return png(self.images[i], self.spec.bits)
        lossless = self.clips.lossless or not self.clips.suffix
        frames, rate = self.images[i].movedim(1, 0), self.clips.rate or ASSUMED_RATE
        return clip_bytes(frames, suffix_of(self.clips), rate, lossless)

    @cached_property
    def labels(self) -> list[str] | None:
        """The class name of each image, if they have labels."""
        label = self.condition.label
        return None if label is None else [self.spec.classes[i] for i in label.tolist()]

    def metadata(self, i: int) -> str:
        """The line of image ``i`` in metadata.jsonl."""
        line: dict[str, Any] = {"file_name": self.name(i), "seed": self.seeds[i]}
        if self.condition.text is not None and self.condition.blend is None:  # two texts, in shares
            line["text"] = self.condition.text[i]
        if self.labels is not None:
            line["label"] = self.labels[i]
        if self.scores is not None:
            line["score"] = round(self.scores[i], 4)
        text = json.dumps(line, ensure_ascii=False)
        return _SEPARATORS.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def suffix_of(clips: ClipOptions | None) -> str:
    """That of the images of a folder, or of its clips."""
    return ".png" if clips is None else f".{clips.suffix or CLIPS}"


@dataclass(frozen=True, kw_only=True)
class Provenance(JsonResult):
    """Where the images of a folder come from, and how far it is filled."""

    made_by: str = SYNTHESIZE
    run: str
    family: str
    images_seen: int  # by the run in its training
    settings: dict[str, Any]  # all that decides which images the folder holds, as JSON
    versions: dict[str, str]
    drawn: int = 0  # seeds tried
    kept: int = 0  # images in the folder
    refused: dict[str, int]  # images that each filter left out

    @property
    def file(self) -> str:
        return PROVENANCE[self.made_by]


def read(to: Path, made_by: str) -> Provenance | None:
    """The provenance in a folder; None where there is none of this command, or it is damaged."""
    with contextlib.suppress(OSError, LimnerError):
        old = from_json(Provenance, files.read_json(to / PROVENANCE[made_by]), str(to))
        sound = old.drawn == old.kept + sum(old.refused.values()) and type(old.settings.get("seed")) is int
        if old.made_by == made_by and sound:
            return old
    return None


def refuse_unfit(to: Path) -> None:
    """Raises LimnerError for a folder that cannot be filled: before a lock, or anything else, is put there."""
    files.check_writable(to, folder=True)
    if not (to / PROVENANCE[SYNTHESIZE]).exists():
        files.refuse_other_files(to, "--to")


def begin(to: Path, provenance: Provenance) -> tuple[Provenance, set[int]]:
    """Open a folder to fill: the provenance with how far it is filled, and the seeds of its images.

    Raises LimnerError for a folder that holds anything else.
    """
    about = to / provenance.file
    if not about.exists():
        files.refuse_other_files(to, "--to")
        files.write_json(about, provenance.to_json())
        return provenance, set()
    old = read(to, provenance.made_by)
    if old is None:
        raise LimnerError(
            f"{about} is damaged, or was not written by {provenance.made_by}: name another folder with --to."
        )
    settings = provenance.settings
    if differ := sorted(key for key in settings if settings[key] != old.settings.get(key)):
        raise LimnerError(
            f"{to} holds images made with other settings ({', '.join(differ)}): name another folder with --to."
        )
    provenance = replace(provenance, drawn=old.drawn, kept=old.kept, refused=provenance.refused | old.refused)
    return provenance, _repair(to, provenance)


def _repair(to: Path, provenance: Provenance) -> set[int]:
    """Remove what an interrupted batch left, which is drawn again; the seeds of the images that stay."""
    listed, settings = to / METADATA, provenance.settings
    first = settings["seed"]
    seeds = range(first, first + provenance.drawn)
    lines = listed.read_text("utf-8", "replace").split("\n") if listed.exists() else [""]
    kept: dict[int, str] = {}  # seed -> line
    for line in lines[:-1]:  # the last may be cut short, or not be counted yet
        with contextlib.suppress(files.Damaged, KeyError, TypeError):
            row = files.parse_json(line, listed)
            if row["seed"] in seeds:
                if not (to / row["file_name"]).exists():
                    raise LimnerError(
                        f"{row['file_name']} is listed in {listed} but is missing: put it back, or name "
                        f"another folder with --to."
                    )
                kept[row["seed"]] = line
    if len(kept) != provenance.kept:
        raise LimnerError(
            f"{listed} lists {len(kept)} images where {provenance.kept} were made: put its lines back, or name "
            f"another folder with --to."
        )
    if [*kept.values(), ""] != lines:
        files.write_text(listed, "".join(f"{line}\n" for line in kept.values()))
    suffix = re.escape(f".{settings['suffix'] or CLIPS}" if "suffix" in settings else ".png")
    for path in to.iterdir():  # images that were never listed
        match = re.fullmatch(rf"(\.?)(-?\d{{5,}}){suffix}", path.name)
        if match and int(match[2]) not in kept:
            if not match[1] and int(match[2]) not in range(first, seeds.stop + AHEAD) and _is_image(path):
                raise LimnerError(f"{path} was not made by {provenance.made_by}: move it to another folder.")
            path.unlink()
    return set(kept)


def _is_image(path: Path) -> bool:
    """Whether a file is a whole image or animation, or a video, which are not looked into."""
    if path.suffix in (".mp4", ".webm", ".mkv"):
        return True
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def add(to: Path, provenance: Provenance, batch: ImageBatch, chosen: Sequence[int]) -> None:
    """Put the chosen images of a batch into the folder: the files first, then their lines, then the count.

    Files have hidden names, which are never read, until their lines are about to be written. Where something fails,
    as on a full disk, the folder is as it was before. Raises LimnerError.
    """
    hidden, names = [to / f".{batch.name(i)}" for i in chosen], [to / batch.name(i) for i in chosen]
    listed = to / METADATA
    before = listed.stat().st_size if listed.exists() else 0
    images = [batch.content(i) for i in chosen]
    with files.uninterrupted():
        try:
            with files.writing(to):
                files.write_synced(dict(zip(hidden, images, strict=True)))
                for path, name in zip(hidden, names, strict=True):
                    os.replace(path, name)
                with open(listed, "a", encoding="utf-8", errors="backslashreplace") as lines:
                    lines.write("".join(batch.metadata(i) for i in chosen))
                    lines.flush()
                    os.fsync(lines.fileno())
                files.write_json(to / provenance.file, provenance.to_json())
        except BaseException:
            _remove([*hidden, *names])
            with contextlib.suppress(OSError):
                os.truncate(listed, before)
            raise


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


# Folders of `limner sample` -----------------------------------------------------------------------------


def listed_images(to: Path) -> set[str]:
    """The images that ``limner sample`` lists in a folder, by name."""
    listed: set[str] = set()
    with contextlib.suppress(OSError, LimnerError, ValueError, TypeError, KeyError):
        lines = (to / METADATA).read_text("utf-8").rstrip("\n").split("\n")
        rows = [files.parse_json(line, to) for line in lines]
        for row in rows:
            name, suffix = os.path.splitext(row["file_name"])
            if name == f"{row['seed']:06d}" and suffix in (".png", *SUFFIXES):
                listed.add(row["file_name"])
    return listed


def find_place(to: Path, provenance: Provenance) -> Path:
    """The folder to draw into: ``to`` itself where it is empty, or holds this drawing unfinished.

    Where it holds another drawing of ``limner sample``, a hidden folder in it, so that the other stays until
    ``finish``. Raises LimnerError for a folder with any other file.
    """
    new, unfinished = read(to / NEW, SAMPLE), read(to, SAMPLE)
    if new and new.kept == new.settings.get("n"):  # a process was killed in ``finish``
        finish(to, to / NEW)
        unfinished = None
    elif new and new.settings != provenance.settings:
        shutil.rmtree(to / NEW)
    if unfinished:
        _repair(to, unfinished)
        if unfinished.settings == provenance.settings:
            return to
    earlier = listed_images(to)
    files.refuse_other_files(to, "--to", earlier | {METADATA} if earlier else ())
    if not earlier:
        (to / provenance.file).unlink(missing_ok=True)
    return to / NEW if earlier else to


def finish(to: Path, place: Path) -> None:
    """Put a finished drawing in the place of the earlier one, if there is one; it can be repeated after a kill."""
    with files.uninterrupted(), files.writing(to):
        if place != to and (place / METADATA).exists():
            images = listed_images(place)
            for name in listed_images(to) - images:
                (to / name).unlink(missing_ok=True)
            for name in images:
                if (place / name).exists():
                    os.replace(place / name, to / name)
            os.replace(place / METADATA, to / METADATA)
        if place != to:
            shutil.rmtree(place)
        (to / PROVENANCE[SAMPLE]).unlink(missing_ok=True)


def is_unfinished(to: Path) -> bool:
    """Whether a drawing was begun there and not finished."""
    return (to / PROVENANCE[SAMPLE]).exists() or (to / NEW).exists()


def count_drawn(to: Path) -> int:
    """How many images of an unfinished drawing are there."""
    unfinished = read(to / NEW, SAMPLE) or read(to, SAMPLE)
    return unfinished.kept if unfinished else 0


def save(to: Path, batch: ImageBatch) -> None:
    """A drawing that is written at once, in the place of an earlier one. Raises LimnerError."""
    n, settings = len(batch.images), {"n": len(batch.images), "seed": batch.seeds[0]}
    provenance = Provenance(
        made_by=SAMPLE, run="", family="", images_seen=0, settings=settings, versions={}, refused={}
    )
    place = find_place(to, provenance)
    add(place, replace(begin(place, provenance)[0], drawn=n, kept=n), batch, range(n))
    finish(to, place)
