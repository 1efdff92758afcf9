"""What the path of an image says: its class, and the split that it belongs to. Functions of names alone.

The folders that an image lies in are its class, but for those that say nothing of what it shows: folders common to all
images, a split's (train, val, test), wrappers (an only folder named `images`, `data` or the like), and shards
(`00000`, `part_3`). Hidden folders and those of the system are passed over before.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from limner.data.annotations.folder_names import HELD_OUT, TRAIN, WRAPPERS, Folder, roles_of, split_word
from limner.data.items import Item, Listing, same_form
from limner.settings import join_words

RULES = 3  # of what paths and metadata say: part of the key of what is packed by them
_MANY = 10  # classes, from which on ones with few images each are taken for subfolders
_FEW_EACH = 10  # images


def few(count: int, total: int) -> bool:
    """Whether ``count`` of ``total`` images are few: a tenth of them, or three where that is a quarter at most."""
    return count <= max(total // 10, min(3, total // 4))


# Layout -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What paths say of images, in order."""

    labels: list[str | None]
    splits: list[str]  # 'train', 'val', 'test', or '' where there are none
    about_splits: list[str]  # sentences for the person
    about_classes: list[str]


def read_paths(names: Sequence[str], classes: str = "", archives: Sequence[str] = ()) -> Layout:
    """The class and split of each image from its name, which is relative and has '/' between folders.

    ``classes``: 'first', 'last' or 'path' of nested folders; '': chosen. ``archives``: the relative name of the
    archive that each image lies in; it may name a split, never a class.
    """
    folders = [tuple(name.split("/")[:-1]) for name in names]
    holds: dict[Folder, list[int]] = defaultdict(list)
    for i, folder in enumerate(folders):
        holds[folder].append(i)
    roles = roles_of({folder: [names[i].split("/")[-1] for i in here] for folder, here in holds.items()})
    said = [roles.split(folder) for folder in folders]
    if archives:
        said = [outer if outer[0] else inner for outer, inner in zip(_said_by(archives), said, strict=True)]
    splits, about_splits = _settle(said)

    counts = {folder: len(here) for folder, here in holds.items()}
    kept, about = {folder: roles.classes(folder) for folder in counts}, []
    if classes and not any(kept.values()):  # named by the person: then even what looks like shards
        kept = {folder: roles.classes(folder, with_shards=True) for folder in counts}
    elif len({folder[-1] for folder in roles.shards}) > 1:
        about.append(_about_shards(roles.shards, classes))
    kept = _without_common(kept, counts)
    labels, chosen = _nested(kept, counts, classes)
    return Layout([labels[folder] for folder in folders], splits, about_splits, about + chosen)


def _said_by(origins: Sequence[str]) -> list[tuple[str, str]]:
    """The split that the relative name of the file around each image says, and the part of the name that does."""
    outside = [tuple(origin.split("/")) for origin in origins]
    roles = roles_of({folder: [] for folder in dict.fromkeys(outside)})
    said = {folder: roles.split(folder) for folder in set(outside)}
    return [said[folder] for folder in outside]


def _settle(said: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The splits of images and a note on them; no splits unless some are for training and others held out."""
    kinds = [split for split, _ in said]
    held = Counter(name for split, name in said if split in HELD_OUT)
    trained = Counter(name for split, name in said if split == TRAIN)
    total, away = len(said), sum(held.values())
    if held and (trained or not few(total - away, total)):
        outside = total - away - sum(trained.values())
        learnt = f"the {outside:,} images that lie outside"
        if trained:
            more = f" and {outside:,} outside" if outside else ""
            learnt = f"the {sum(trained.values()):,} images of {_and(trained)}{more}"
        measured = f"held out to measure on: the {away:,} images of {_and(held)}"
        return kinds, [f"Trained on: {learnt}; {measured}."]
    if held:
        return [""] * len(said), [f"There is no split for training beside {_and(held)}: all images are used."]
    return [""] * len(said), []


def _without_common(kept: Mapping[Folder, Folder], counts: Mapping[Folder, int]) -> dict[Folder, Folder]:
    """The same without the folders common to all images, or to all but a few that lie above; one folder is kept."""
    total, depth = sum(counts.values()), 0
    while True:
        above = sum(counts[folder] for folder, names in kept.items() if len(names) <= depth)
        tops = {names[depth] for names in kept.values() if len(names) > depth}
        if len(tops) != 1 or not few(above, total):
            break
        depth += 1
    if not tops and depth:
        depth -= 1
    return {folder: names[depth:] for folder, names in kept.items()}


def _nested(
    kept: Mapping[Folder, Folder], counts: Mapping[Folder, int], classes: str
) -> tuple[dict[Folder, str | None], list[str]]:
    """The class of each folder, and what was chosen where there are folders in folders."""
    named = {folder: names for folder, names in kept.items() if names}
    paths = Counter[Folder]()
    for folder, names in named.items():
        paths[names] += counts[folder]
    deepest = max(paths, key=len, default=())
    beside = _beside_folders(paths)
    why = ""
    chosen = classes
    if not classes:
        chosen, why = _choose({names: count for names, count in paths.items() if names not in beside})
    take = {"first": lambda names: names[0], "last": lambda names: names[-1]}.get(chosen, "/".join)
    none = {(), *(beside if chosen != "first" else ())}
    labels = {folder: take(names) if names not in none else None for folder, names in kept.items()}
    notes = []
    if len(deepest) > 1 and not classes:
        others = [word for word in ("first", "last", "path") if word != chosen]
        one = f"{take(deepest)!r} for '{'/'.join(deepest)}'"
        notes = [f"Classes of nested folders: {one}{why}. Others: --data.classes {' or '.join(others)}."]
    return labels, notes + _suspicious({label for label in labels.values() if label})


def _beside_folders(paths: Mapping[Folder, int]) -> set[Folder]:
    """The paths that lie above others, if they hold few of all images: covers beside folders of classes."""
    inner = {names[:depth] for names in paths for depth in range(1, len(names))}
    above = inner & paths.keys()
    return above if few(sum(paths[names] for names in above), sum(paths.values())) else set()


def _choose(paths: Mapping[Folder, int]) -> tuple[str, str]:
    """'first', 'last' or 'path' for the folders of classes, each with its number of images, and why."""
    first, last = {names[0] for names in paths}, {names[-1] for names in paths}
    if len(first) == len(paths):
        return "first", ""
    if len(first) == 1:
        return "path", ""
    within = defaultdict(set)
    for names in paths:
        within[names[-1]].add(names[0])
    if all(2 * len(tops) >= len(first) and len(tops) > 1 for tops in within.values()) and len(last) > 1:
        say_nothing = all(WRAPPERS & set(re.findall(r"[a-z]+", name.lower())) for name in last)  # images_dark
        way = "first" if say_nothing or len(first) <= len(last) else "last"
        return way, f" (most of {len(first):,} folders hold folders of the same {len(last):,} names)"
    each = sum(paths.values()) / len(paths)
    if len(paths) > _MANY and each < _FEW_EACH:
        return "first", f" (the {len(paths):,} whole paths would have {each:.1f} images each)"
    return "path", ""


def _suspicious(labels: set[str]) -> list[str]:
    """A note where classes look like splits or shards after all."""
    if len(labels) < 2:
        return []
    splits = sorted(label for label in labels if any(map(split_word, label.split("/"))))
    if splits:
        what = f"{_and(splits)} {'looks like a split' if len(splits) == 1 else 'look like splits'}"
        return [f"Of the classes {what}: if so, name the folders train, val and test, and nothing else."]
    padded = all(label.isdigit() for label in labels) and len({len(label) for label in labels}) == 1
    if padded and any(label.startswith("0") and len(label) > 1 for label in labels):
        return [f"The classes {_range(labels)} are numbers: if they are shards, add --data.no-labels."]
    return []


def _about_shards(found: Iterable[Folder], classes: str) -> str:
    undo = "" if classes else " (if they are: --data.classes last)"
    names = _range({folder[-1] for folder in found})
    return f"The folders {names} look like shards of one set, not like classes{undo}."


def _range(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return f"{ordered[0]!r} to {ordered[-1]!r}" if len(ordered) > 1 else repr(ordered[0])


def _and(names: Iterable[str]) -> str:
    words = [repr(name) for name in sorted(names)]
    return join_words(words if len(words) <= 4 else [*words[:3], f"{len(words) - 3:,} more"], "and")


# Of images ----------------------------------------------------------------------------------------------


def by_path(listing: Listing, classes: str = "", archives: Sequence[str] = ()) -> Listing:
    """The images with the class and split that their names say, where they have none of their own.

    ``classes`` and ``archives`` are those of `read_paths`.
    """
    layout = read_paths([item.name for item in listing.items], classes, archives)
    items = [
        replace(item, label=item.label or (label and same_form(label)), split=item.split or split)
        for item, label, split in zip(listing.items, layout.labels, layout.splits, strict=True)
    ]
    labelled = all(item.label for item in listing.items)  # whatever their folders are
    notes = layout.about_splits + ([] if labelled else layout.about_classes)
    if inside := listing.kinds["archives"]:
        notes.append(f"{inside:,} archives are not read: name them as sources of their own.")
    return replace(listing, items=items, notes=listing.notes + notes)


def by_origin(listing: Listing, origins: Sequence[str]) -> Listing:
    """The images with the split that the relative names of their files say, such as train-00000.parquet."""
    splits, notes = _settle(_said_by(origins))
    items = [replace(item, split=split) for item, split in zip(listing.items, splits, strict=True)]
    return replace(listing, items=items, notes=listing.notes + notes)


@dataclass
class Classes:
    """The classes of images that are added one by one, and what becomes of images without one.

    There are no classes if all images have the same, or if more than a few of those to train on have none. A few are
    left out of training instead, and so are those of a held-out split without classes.
    """

    counts: Counter[str] = field(default_factory=Counter)
    trained: int = 0
    held_out: int = 0
    trained_without: int = 0  # images without a class
    held_out_without: int = 0
    example: str = ""  # the first of them

    def add(self, item: Item) -> None:
        held, without = item.split in HELD_OUT, item.label is None
        self.trained += not held
        self.held_out += held
        self.trained_without += without and not held
        self.held_out_without += without and held
        if item.label is not None:
            self.counts[item.label] += 1
        elif not self.example:
            self.example = item.name

    @property
    def names(self) -> tuple[str, ...]:
        """In order, numbers as numbers; () where there are no classes."""
        if len(self.counts) < 2 or not few(self.trained_without, self.trained):
            return ()
        if self.held_out_without < self.held_out and not few(self.held_out_without, self.held_out):
            return ()
        return tuple(sorted(self.counts, key=_natural))

    def notes(self, used: bool = True) -> list[str]:
        """What is said where some images have a class and others none; nothing where labels are not ``used``."""
        without, total = self.trained_without + self.held_out_without, self.trained + self.held_out
        if not (used and without and len(self.counts) > 1):
            return []
        shown = f"{without:,} of {total:,} images, such as {self.example!r},"
        if not self.names:
            return [f"Classes are left out: {shown} have none. Sort them into folders too."]
        verb = "has no class and is" if without == 1 else "have no class and are"
        return [f"{shown} {verb} left out of training and measuring (--data.no-labels takes all)."]


def classes_of(items: Iterable[Item]) -> Classes:
    classes = Classes()
    for item in items:
        classes.add(item)
    return classes


def _natural(name: str) -> tuple[int, int, str, str]:
    """'2' before '10', numbers before words."""
    if not (name.isascii() and name.isdigit()):
        return 1, 0, "", name
    digits = name.lstrip("0")
    return 0, len(digits), digits, name
