"""Work on many images in threads, with a bounded number under way."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from limner.data.images import decode
from limner.data.items import Item, Problem
from limner.progress import Watch, ignore
from limner.settings import LimnerError

R = TypeVar("R")


def in_parallel(
    work: Callable[[Item], R], items: Sequence[Item], watch: Watch = ignore, group: int = 16
) -> Iterator[tuple[Item, R | Problem]]:
    """Each item in turn with work(item), or why it failed; ``watch`` is called with the share done.

    In threads, as Pillow decodes and resizes without holding Python's lock; a bounded number is under way. A thread
    takes ``group`` items at a time.
    """
    workers = cores()

    def attempt(item: Item) -> R | Problem:
        try:
            return work(item)
        except LimnerError:
            raise
        except Exception as error:  # on damaged files Pillow raises nearly anything
            return Problem(item.name, decode.reason(error))

    def several(group: Sequence[Item]) -> list[tuple[Item, R | Problem]]:
        return [(item, attempt(item)) for item in group]

    with ThreadPoolExecutor(workers) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bombs, palettes and EXIF: what matters becomes a Problem
        groups = (items[start : start + group] for start in range(0, len(items), group))
        submitted = (pool.submit(several, group) for group in groups)
        under_way = deque(islice(submitted, 4 * workers if group > 1 else workers))
        done = 0
        while under_way:
            finished = under_way.popleft().result()
            done += len(finished)
            watch(done / len(items))
            yield from finished
            under_way.extend(islice(submitted, 1))


def attempt_each(
    work: Callable[[Item], R], items: Sequence[Item], watch: Watch = ignore
) -> tuple[list[tuple[Item, R]], list[Problem]]:
    """The items for which the work succeeded, with its results, and why it failed for the others."""
    results = list(in_parallel(work, items, watch))
    done = [(item, result) for item, result in results if not isinstance(result, Problem)]
    return done, [result for _, result in results if isinstance(result, Problem)]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
