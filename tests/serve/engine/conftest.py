"""Runs that are made once, and one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from limner.serve.engine.other_load import OtherLoad
from tests.serve.engine.runs import keep, made


@pytest.fixture(autouse=True)
def calm(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine that does nothing else, or what is kept would be measured again."""
    monkeypatch.setattr(OtherLoad, "is_busy", lambda self, threads: False)
    yield


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny run of a family, by its name and what is changed."""
    home, kept = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def get(family: str, **changes: object) -> Path:
        key = f"{family}{sorted(changes.items())}"
        if key not in kept:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            kept[key] = keep(made(family, **changes), home / f"{family}-{len(kept)}")  # type: ignore[arg-type]
            torch.set_num_threads(threads)
        return kept[key]

    return get
