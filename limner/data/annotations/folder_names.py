"""What the name of a folder means beside its siblings: a split, a shard, a wrapper, hidden, or perhaps a class."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import gcd

TRAIN, HELD_OUT = "train", ("val", "test")
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset", "trainval", "训练", "训练集"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "验证", "验证集"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "测试", "测试集"), "test"),
}
# Splits only beside one of the above: on their own they may well be classes.
_PERHAPS = {
    "dev": "val", "eval": "test", "evaluation": "test", "holdout": "test", "extra": "train", "unlabeled": "train",
    "unlabelled": "train",
}  # fmt: skip
# Words that a split's name may have beside it, as in train_images, test-set and train-00000-of-00002.parquet.
_BESIDE_SPLITS = frozenset(
    "set image images img imgs data dataset split folder full of part shard jpg jpeg png zip tar gz tgz bz tbz xz txz "
    "parquet".split()
)
WRAPPERS = frozenset(
    "image images img imgs data dataset content contents picture pictures pics photo photos file files jpg jpeg jpegs "
    "jpegimages png pngs raw original originals samples frames 图片 图像 照片 数据".split()
)
_SYSTEM = {"system volume information"}.union(
    "__macosx __pycache__ @eadir #recycle #snapshot $recycle.bin recycler recycled lost+found found.000 thumbs "
    "thumbs.db desktop.ini".split()
)
_SHARD = re.compile(
    r"(.*[-_ .])?(shards?|parts?|chunks?|batch|batches|bucket|subset|vol|volume|disc|block|split|dir|folder|images?"
    r"|imgs?|data|photos|pictures)[-_ .]*\d+([-_ ]of[-_ ]\d+)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[0-9]{3,}")
_HASH = re.compile(r"[0-9a-f]{2,3}")

Folder = tuple[str, ...]  # the names of the folders that an image lies in


def passed_over(folder: str) -> bool:
    """Whether a folder of this name is hidden or of the system, such as .ipynb_checkpoints or __MACOSX."""
    return folder.startswith(".") or folder.lower() in _SYSTEM


def hidden(name: str) -> bool:
    """Whether a relative name lies below a folder that is passed over."""
    return any(passed_over(part) for part in name.split("/")[:-1] if part not in (".", ".."))


# Splits -------------------------------------------------------------------------------------------------


def splits_of(siblings: Iterable[str]) -> dict[str, str]:
    """The names that name a split ('train', 'val' or 'test') among those of folders or files that lie side by side.

    All of them do, or two different ones are there; one beside other names is no split: a train beside a bus. Names
    that differ in the split alone (pets_train, pets_test) are splits too.
    """
    names = list(siblings)
    known = {name: found for name in names if (found := split_word(name))}
    plain = {name: split for name, (split, _, rest) in known.items() if not rest}
    kinds = {known[name][0] for name in plain if known[name][1]}
    if kinds and (len(plain) == len(names) or len(kinds) > 1):
        return plain
    kinds = {split for split, sure, _ in known.values() if sure}
    if len(kinds) > 1 and len(known) == len(names) and len({rest for *_, rest in known.values()}) == 1:
        return {name: split for name, (split, *_) in known.items()}
    return {}


def split_word(name: str) -> tuple[str, bool, Folder] | None:
    """The split that a name may mean, whether it can mean nothing else, and the other words in it."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<![^\W_])[0-9a-f]{8,}(?![^\W_])", "", spaced))
    found = [word for word in words if word in _SPLITS or word in _PERHAPS]
    if not found or (len(found) > 1 and {_SPLITS.get(word) for word in found} != {"train", "val"}):
        return None
    rest = tuple(word for word in words if word not in found and word not in _BESIDE_SPLITS)
    return _SPLITS.get(found[0]) or _PERHAPS[found[0]], found[0] in _SPLITS, rest


# Shards -------------------------------------------------------------------------------------------------


def shards(siblings: Mapping[str, Sequence[str]]) -> bool:
    """Whether folders, each with the names of its images, are parts of one set that say nothing of what they hold.

    They are named as parts (shard-0001, part_3), by two or three digits of a hash, or by zero-padded numbers of three
    digits or more (00000, 00001) with few gaps; not where such folders have different numbers of images and the same
    names in each, as folders of classes have.
    """
    names = list(siblings)
    if all(map(_SHARD.fullmatch, names)):
        return True
    if len({len(name) for name in names}) > 1:
        return False
    if len(names) >= 16 and all(map(_HASH.fullmatch, names)):
        return not all(name.isdigit() or name.isalpha() for name in names)
    if not all(map(_NUMBER.fullmatch, names)) or not any(name.startswith("0") for name in names):
        return False
    numbers = sorted(map(int, names))
    step = gcd(*(b - a for a, b in pairwise(numbers))) or 1
    if len(numbers) < ((numbers[-1] - numbers[0]) // step + 1) / 2:
        return False  # sparse: identifiers
    counts = [len(siblings[name]) for name in sorted(names)]
    alike = len(set(counts[:-1])) <= 1  # the last one may be shorter
    every = Counter(name for images in siblings.values() for name in set(images))
    return alike or sum(count for count in every.values() if count > 1) < sum(every.values()) / 2


# Roles ------------------------------------------------------------------------------------------------------


@dataclass
class Roles:
    """What the folders of a tree are, but for those of classes."""

    splits: dict[Folder, str] = field(default_factory=dict)
    shards: set[Folder] = field(default_factory=set)
    wrappers: set[Folder] = field(default_factory=set)

    def split(self, folder: Folder) -> tuple[str, str]:
        """The split of a folder and the name that says so; the outermost of several."""
        above = (folder[:depth] for depth in range(1, len(folder) + 1))
        return next(((self.splits[f], f[-1]) for f in above if f in self.splits), ("", ""))

    def classes(self, folder: Folder, with_shards: bool = False) -> Folder:
        """The part of a folder that may name a class."""
        none = self.splits.keys() | self.wrappers | (set() if with_shards else self.shards)
        return tuple(name for depth, name in enumerate(folder, 1) if folder[:depth] not in none)


def roles_of(holds: Mapping[Folder, Sequence[str]]) -> Roles:
    """What each folder is, from the names of those beside it and of its images."""
    children: dict[Folder, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder, images in holds.items():
        for depth, name in enumerate(folder):
            children[folder[:depth]][name] += images
    roles = Roles()
    for parent, siblings in children.items():
        if splits := splits_of(siblings):
            roles.splits |= {(*parent, name): split for name, split in splits.items()}
        elif shards(siblings):
            roles.shards |= {(*parent, name) for name in siblings}
        elif len(siblings) == 1 and next(iter(siblings)).lower() in WRAPPERS:
            roles.wrappers |= {(*parent, name) for name in siblings}
    return roles
