"""Whether other programs hold the processors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from limner.serve.engine import other_load

IS_BUSY = other_load.OtherLoad.is_busy


@pytest.fixture
def stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the system says, and a clock that stands at 100 s."""
    monkeypatch.setattr(other_load, "STAT", tmp_path / "stat")
    monkeypatch.setattr(other_load, "_allowed", lambda: {0, 2})
    monkeypatch.setattr(other_load, "processors", lambda: 2)
    monkeypatch.setattr(other_load.OtherLoad, "is_busy", IS_BUSY)
    move(monkeypatch, 100.0, 7.0)
    return tmp_path / "stat"


def move(monkeypatch: pytest.MonkeyPatch, now: float, own: float) -> None:
    monkeypatch.setattr(other_load.time, "perf_counter", lambda: now)
    monkeypatch.setattr(other_load.time, "process_time", lambda: own)


def say(stat: Path, *idle: float) -> None:
    """Seconds that each processor was idle since the start."""
    hertz = os.sysconf("SC_CLK_TCK")
    lines = [f"cpu{i} 5 5 5 {round(seconds * hertz)} 0 0 0 0 0 0\n" for i, seconds in enumerate(idle)]
    stat.write_text("cpu  1 2 3 4 5 6 7 0 0 0\n" + "".join(lines) + "intr 5 0 0\nctxt 9\n")


@pytest.mark.parametrize(
    ("idle", "own", "threads", "busy"),
    [
        ((0, 9, 0), 2.0, 2, False),  # all time is its own
        ((1, 0, 1), 0.0, 2, False),  # nobody did anything
        ((0.5, 9, 0.5), 0.5, 2, True),  # others took half a second of two
        ((0.5, 9, 0.5), 0.5, 1, False),  # which leaves enough for one thread
        ((0, 9, 0), 0.5, 1, True),
        ((0, 9, 0), 2.0, 64, False),  # more threads than processors
    ],
)
def test_what_others_took(
    idle: tuple[float, ...], own: float, threads: int, busy: bool, stat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(stat, 1000, 2000, 3000)
    seen = other_load.OtherLoad()
    say(stat, *(start + more for start, more in zip((1000, 2000, 3000), idle, strict=True)))
    move(monkeypatch, 101.0, 7.0 + own)
    assert seen.is_busy(threads) is busy


@pytest.mark.parametrize("content", ["", "cpu0 5 5\n", "cpu0 a b c d e\n", None])
def test_where_the_system_does_not_say(content: str | None, stat: Path) -> None:
    if content is not None:
        stat.write_text(content)
    assert not other_load.OtherLoad().is_busy(2)
