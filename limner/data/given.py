"""The pictures that rows are given: partners of the same name, halves of one file, or another domain."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence

import numpy as np

from limner.data.dataset import Data
from limner.data.sources import Problem
from limner.settings import LimnerError


def add_pairs(data: Data, given: Data) -> Data:
    """Each row is given the picture of its name, whatever the extension.

    Rows and pictures without a partner are left out and become problems. Raises LimnerError if no row is left.
    """
    origin = " ".join(given.sources)
    rows, partners, problems = partners_of(data.names, given.names, origin)
    if not len(rows):
        raise LimnerError(
            f"None of the {len(data):,} images, such as {data.names[0]!r}, has a partner of the same name in "
            f"{origin}: give --data.pairs a source with the same file names in the same subfolders."
        )
    if given.sources != data.sources:
        problems += [Problem(f"{origin}: {p.path}", p.reason) for p in given.problems]
    data = dataclasses.replace(data, problems=data.problems + problems).part(rows)
    return joined(data, given.part(partners), paired=True)


def partners_of(
    names: Sequence[str], given: Sequence[str], origin: str
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Indices [n] of names and [n] of given names that are equal without their extensions; the others as problems."""
    if list(names) == list(given):  # such as two halves of the same files
        return np.arange(len(names)), np.arange(len(names)), []
    stems, given_stems = ([os.path.splitext(name)[0] for name in each] for each in (names, given))
    place = {stem: i for i, stem in reversed(list(enumerate(given_stems)))}  # the first of several
    problems = [
        Problem(name, f"has no partner of the same name in {origin}")
        for name, stem in zip(names, stems, strict=True)
        if stem not in place
    ]
    known = set(stems)
    for i, (name, stem) in enumerate(zip(given, given_stems, strict=True)):
        if place[stem] != i:
            problems.append(Problem(f"{origin}: {name}", f"has the name of {given[place[stem]]!r}"))
        elif stem not in known:
            problems.append(Problem(f"{origin}: {name}", "has no partner among the images"))
    rows = [i for i, stem in enumerate(stems) if stem in place]
    return np.array(rows, np.int64), np.array([place[stems[i]] for i in rows], np.int64), problems


def joined(data: Data, given: Data, paired: bool) -> Data:
    """Row i is given picture i if they are ``paired``, else any picture, in an order of its own."""
    digest = hashlib.blake2b(f"{data.fingerprint} {given.fingerprint} {paired}".encode(), digest_size=16)
    if paired:
        digest.update(np.stack([data.rows, given.rows]).astype("<i8").tobytes())
    spec = dataclasses.replace(data.spec, given=given.spec)
    return dataclasses.replace(data, spec=spec, fingerprint=digest.hexdigest(), given=given, paired=paired)
