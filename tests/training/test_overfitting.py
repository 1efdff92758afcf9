"""A held-out loss that turns is said, by numbers of real trainings and through a whole one."""

from pathlib import Path
from typing import Any

import pytest

from limner import api
from limner.training.journal import read_log
from limner.training.loop import Loop
from limner.training.overfitting import turned
from tests.helpers import paint

NAME = "held_out/network/velocity"
# flow on 273 landscapes at 64x128, and on 4,479 sprites at 64x64 (docs/log.md).
LANDSCAPES = {8_416: 0.0902, 14_176: 0.0866, 19_680: 0.0845, 23_904: 0.0847, 28_096: 0.0870, 30_016: 0.0876}
SPRITES = {25_568: 0.1048, 40_480: 0.0998, 51_424: 0.0978, 58_272: 0.0971, 60_000: 0.0970}


def log_of(losses: dict[int, float]) -> list[dict[str, Any]]:
    return [{"seen": 32, "step": 1}, *({"seen": seen, NAME: loss} for seen, loss in losses.items())]


def test_what_real_trainings_are_told() -> None:
    said = turned(log_of(LANDSCAPES), [NAME], epoch=260)
    assert said.startswith(
        "The held-out loss was lowest after 19,680 images, 76 passes, and has risen by 4% since"
    )
    assert "with --data.flip, or with --budget 19680img" in said
    assert "--data.flip" not in turned(log_of(LANDSCAPES), [NAME], 260, flipped=True)
    assert not turned(log_of(SPRITES), [NAME], 4_255)


@pytest.mark.parametrize(
    "losses",
    [
        {},
        {1: 1.0},
        {10: 1.0, 90: 0.5, 100: 0.6},
        {10: 1.0, 100: 1.019},
        {10: -1.0, 100: 1.0},
        {50: 0.0, 100: 1.0},
    ],
    ids=["none", "one", "late", "by chance", "below zero", "at zero"],
)
def test_nothing_is_said_without_reason(losses: dict[int, float]) -> None:
    assert not turned(log_of(losses), [NAME], 10)
    assert not turned(log_of({10: 1.0, 100: 2.0}), [], 10)


def test_a_training_says_it_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also in its log, where the report reads it; and not where players compete."""
    paint(tmp_path / "pictures", 40, (16, 16))

    def rising(loop: Loop, data: Any, limit: int = 256) -> dict[str, float]:
        player = loop.players[0]
        return {f"{player.name}/{term}": 1 + loop.seen / 64 for term in ("loss", *player.objective.shown)}

    monkeypatch.setattr(Loop, "held_out_losses", rising)
    for family, expected in (("flow", True), ("dcgan", False)):
        out = tmp_path / family
        training = {"evaluate_every": "16img", "samples": 0}
        api.train(family, tmp_path / "pictures", out, preset="tiny", budget="64img", training=training)
        assert ("by heart" in capfd.readouterr().err) == expected
        assert any("by heart" in line.get("remark", "") for line in read_log(out)) == expected
