"""Packed images, read by index, so that a batch is a pure function of the images seen before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from limner.core import Batch, Condition, ImageSpec, mix
from limner.data.annotations.folder_names import HELD_OUT
from limner.data.clips.names import film_of
from limner.data.items import LEAST_TO_HOLD_OUT, Oracle, Problem, to_follow
from limner.data.rows import PackedArray
from limner.data.sizes import refuse_beyond_memory
from limner.data.tiles import picture_of
from limner.data.twins import find_twins
from limner.settings import LimnerError

TRAINED_ON = "the held-out images are given pictures that were trained on, since their domain has no others"


@dataclass(frozen=True)
class Selection:
    """The images of a batch."""

    index: np.ndarray  # [B] into the data
    flip: np.ndarray | None = None  # [B] True: mirrored, with its partner
    given: np.ndarray | None = None  # [B] into the other domain; None: by index, cyclically
    given_flip: np.ndarray | None = None  # [B] True: the picture of the other domain is mirrored

    def __getitem__(self, rows: slice) -> Selection:
        fields = (self.index, self.flip, self.given, self.given_flip)
        return Selection(*(None if x is None else x[rows] for x in fields))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Data:
    """Packed images, or a view of some of them, with what each row is given.

    Values are uint8 or uint16 over their full range; alpha is premultiplied.
    """

    spec: ImageSpec
    fingerprint: str  # of pixels, labels, captions and given pictures: names the data wherever it lies
    pixels: PackedArray | np.ndarray  # [M, H, W, C]; video [M, T, H, W, C] where there are no ``strides``
    rows: np.ndarray  # [N] rows of `pixels` in this view; of clips with ``strides``, of their first frames
    names: list[str]  # N
    labels: np.ndarray | None = None  # [N] int64; -1: none
    captions: list[str] | None = None  # N; '' where an image has none
    problems: list[Problem] = dataclasses.field(default_factory=list)  # files left out, and why
    notes: list[str] = dataclasses.field(default_factory=list)  # sentences on how the sources were read
    sources: tuple[str, ...] = ()
    source: np.ndarray | None = None  # [N] index into `sources`
    given: Data | None = None  # the pictures that rows are given
    # row i is given picture i; False: any picture of another domain, in an order of its own
    paired: bool = True
    alone: str = ""  # of one of two domains: its fingerprint without the other
    splits: list[str] | None = None  # N; train, val, test or '', where a source says so
    oracle: Oracle | None = None  # of drawn images whose captions can be checked
    # [N, 2] own height and width of each row's picture, where they were asked for
    sizes: np.ndarray | None = None
    # median height and width of the pictures' files; None: drawn, or not known
    own: tuple[int, int] | None = None
    strides: np.ndarray | None = None  # [N] of clips, rows from one frame to the next; 0: a still
    tiled: bool = False  # rows are tiles of pictures: see ``limner.data.tiles``
    twins: int = 0  # of a held-out part: images that are left out, since the training part has their twins
    trained_on: bool = False  # of a held-out part: its given pictures, since their domain has no others

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def follows(self) -> str:
        """What a model can follow, in words; "" for nothing."""
        return to_follow(
            len(self), sum(map(bool, self.captions or ())), len(self.spec.classes), self.spec.noun
        )

    @property
    def held_out_notes(self) -> list[str]:
        """Sentences on what a held-out part lacks."""
        notes = [self.twins_note, f"{TRAINED_ON.capitalize()}." if self.trained_on and len(self) else ""]
        return [note for note in notes if note]

    @property
    def twins_note(self) -> str:
        """A sentence on the twins that were left out of a held-out part; "" for none."""
        were = f"{self.twins:,} held-out images are" if self.twins > 1 else "1 held-out image is"
        return f"{were} left out: the same pictures are among the training images." if self.twins else ""

    @property
    def epoch(self) -> int:
        """How many images an epoch has: of two domains those of the larger one."""
        return max(len(self), 0 if self.given is None else len(self.given))

    @property
    def array(self) -> np.ndarray:
        """[N, H, W, C]; video [N, T, H, W, C]: a copy of this view's rows."""
        return self.pixels[self.places]

    @property
    def places(self) -> np.ndarray:
        """[N] rows of ``pixels``, or [N, T] those of the frames of clips; a still is repeated."""
        return self._places(np.arange(len(self)))

    def _places(self, index: np.ndarray) -> np.ndarray:
        if self.strides is None:
            return self.rows[index]
        return self.rows[index, None] + self.strides[index, None] * np.arange(self.spec.frames)

    def part(self, indices: np.ndarray) -> Data:
        """A view of some of the images, with the pictures that they are given."""
        return dataclasses.replace(
            self,
            rows=self.rows[indices],
            names=[self.names[i] for i in indices],
            labels=None if self.labels is None else self.labels[indices],
            captions=None if self.captions is None else [self.captions[i] for i in indices],
            source=None if self.source is None else self.source[indices],
            splits=None if self.splits is None else [self.splits[i] for i in indices],
            sizes=None if self.sizes is None else self.sizes[indices],
            strides=None if self.strides is None else self.strides[indices],
            given=self.given.part(indices) if self.given is not None and self.paired else self.given,
        )

    def split(self, holdout: float, per_class: int = 0, twins: bool = False) -> tuple[Data, Data]:
        """(training part, held-out part): disjoint, always the same; images without a class are in neither.

        Held-out images with a twin in the training part (see ``limner.data.twins``) are left out, unless ``twins``.

        The held-out part is the images of the sources' val and test splits, whatever `holdout` is, or else that share,
        the same of each class: at least one of LEAST_TO_HOLD_OUT or more images unless it is 0, none of fewer.
        `per_class` limits the training part to that many images of each class. Tiles of one picture, clips of one
        film, and pairs, stay together; each of two domains is split as if it were alone.
        """
        if not 0 <= holdout < 1:
            raise LimnerError(f"--data.holdout must be at least 0 and below 1, not {holdout}.")
        if self.labels is not None and len(labelled := np.flatnonzero(self.labels >= 0)) < len(self):
            return self.part(labelled).split(holdout, per_class, twins)
        chosen = self._held_out(holdout)
        training, held_out = self.part(np.delete(np.arange(len(self)), chosen)), self.part(chosen)
        if self.given is not None and not self.paired:
            train_on, test_on = self.given.split(holdout, twins=True)
            training = dataclasses.replace(training, given=train_on)
            held_out = dataclasses.replace(
                held_out, given=test_on if len(test_on) else train_on, trained_on=not len(test_on)
            )
        training = training._few(per_class) if per_class else training
        return training, held_out if twins else held_out.without_twins(training)

    def without_twins(self, training: Data) -> Data:
        """The images of this held-out part that have no twin in the training part; of pairs and domains, in each."""
        has_twin = find_twins(self.pixels, self.places, training.places)
        own, others = self.given, training.given
        if self.paired and own is not None and others is not None:
            has_twin |= find_twins(own.pixels, own.places, others.places)
        kept, twins = self.part(np.flatnonzero(~has_twin)), int(has_twin.sum())
        if not self.paired and not self.trained_on and own is not None and others is not None:
            given = own.without_twins(others)
            if len(given):
                return dataclasses.replace(kept, given=given, twins=twins + given.twins)
            kept = dataclasses.replace(kept, trained_on=True)
        return dataclasses.replace(kept, twins=twins)

    def _held_out(self, holdout: float) -> np.ndarray:
        """The indices of the held-out images, in order."""
        said = np.array([split in HELD_OUT for split in self.splits or ()], bool)
        if said.any() and not said.all():
            return np.flatnonzero(said)
        if not self.tiled and self.strides is None:
            return self._share(np.arange(len(self)), holdout, LEAST_TO_HOLD_OUT)
        pictures = list(map(picture_of if self.tiled else film_of, self.names))
        _, first, which = np.unique(pictures, return_index=True, return_inverse=True)
        chosen = self._share(
            first, holdout, least=5
        )  # pictures have many tiles and films many clips: few are enough
        return np.flatnonzero(np.isin(first[which], chosen))

    def _share(self, rows: np.ndarray, share: float, least: int) -> np.ndarray:
        """Some of these rows [K], the same share of each class: at least one of ``least`` or more, else none."""
        n = len(rows)
        held = max(1, round(n * share)) if n >= least and share > 0 else 0
        keys = np.random.PCG64(mix("split", self.alone or self.fingerprint)).random_raw(n)
        order = np.lexsort((keys, np.zeros(n) if self.labels is None else self.labels[rows]))
        # Classes lie one after another in `order`: even steps through it take the same share of each.
        return np.sort(rows[order[((np.arange(held) + 0.5) * n / max(held, 1)).astype(np.int64)]])

    def _few(self, per_class: int) -> Data:
        """``per_class`` random images of each class, always the same."""
        if per_class < 0 or self.labels is None:
            why = "these images have no classes" if self.labels is None else "name a number above 0"
            raise LimnerError(f"Cannot take {per_class} images of each class: {why}.")
        keys = np.random.PCG64(mix("few", self.fingerprint)).random_raw(len(self))
        order = np.lexsort((keys, self.labels))
        labels = self.labels[order]
        place = np.arange(len(order)) - np.searchsorted(labels, labels)  # within its class
        return self.part(np.sort(order[place < per_class]))

    def order(self, seen: int, count: int, seed: int) -> np.ndarray:
        """[count] indices at positions seen, seen + 1, ... of an endless sequence of shuffled epochs."""
        n = len(self)
        if n == 0:
            raise LimnerError("There are no images to train on: choose a source that has some.")
        epochs, places = np.divmod(np.arange(seen, seen + count), n)
        runs = [_permutation(n, seed, int(e))[places[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(runs) if runs else np.empty(0, np.int64)

    def select(self, seen: int, count: int, seed: int, flip: bool = False) -> Selection:
        """The images of a training batch: a function of the seed and the images seen before it alone."""

        def mirrored(*keys: str) -> np.ndarray | None:
            return np.random.default_rng(mix(seed, seen, *keys)).random(count) < 0.5 if flip else None

        index = self.order(seen, count, seed)
        if self.given is None or self.paired:
            return Selection(index, mirrored("flip"))
        given = self.given.order(seen, count, mix(seed, "given"))
        return Selection(index, mirrored("flip"), given, mirrored("flip", "given"))

    def batch(self, selection: Selection | np.ndarray) -> Batch:
        """The selected images, or those at the indices [B], with their conditions."""
        chosen = selection if isinstance(selection, Selection) else Selection(np.asarray(selection))
        index, image = chosen.index, None
        if self.given is not None:  # as many as the images if paired
            other = index % len(self.given) if chosen.given is None else chosen.given
            image = self.given._images(other, chosen.flip if self.paired else chosen.given_flip)
        label = None if self.labels is None else torch.from_numpy(self.labels[index])
        text = None if self.captions is None else [self.captions[i] for i in index]
        condition = Condition(len(index), label, text, image)
        return Batch(self._images(index, chosen.flip), condition, self._counts(index))

    def _counts(self, index: np.ndarray) -> Tensor | None:
        """[B, T] bool: the frames that count, of a still the first; None where all do."""
        if self.strides is None or (self.strides > 0).all():
            return None
        moves = torch.from_numpy(self.strides[index] > 0)
        return moves[:, None] | (torch.arange(self.spec.frames) == 0)

    def _images(self, index: np.ndarray, flip: np.ndarray | None) -> Tensor:
        """[B, C, (T,) H, W] in [-1, 1], float32."""
        refuse_beyond_memory(len(index), self.spec.shape)
        pixels = self.pixels[self._places(index)]  # [B, (T,) H, W, C]
        if flip is not None and np.any(flip):
            pixels[flip] = pixels[flip, ..., ::-1, :]
        full = 255 if pixels.dtype == np.uint8 else 65535
        image = torch.from_numpy(pixels).movedim(-1, 1)
        image = image.to(torch.float32, memory_format=torch.contiguous_format)
        return image.mul_(2 / full).sub_(1)


def batches(data: Data, limit: int | None = None, size: int = 64) -> Iterator[torch.Tensor]:
    """The images in order, up to ``limit`` of them, in batches [B, C, H, W]."""
    n = min(len(data), limit or len(data))
    for at in range(0, n, size):
        yield data.batch(np.arange(at, min(at + size, n))).image


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """[n]; by sorting raw bits, whose stream NumPy keeps for ever (it may change that of `permutation`)."""
    keys = np.random.PCG64(mix("order", seed, epoch)).random_raw(n)
    return np.argsort(keys, kind="stable")
