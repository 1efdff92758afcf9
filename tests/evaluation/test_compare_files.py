"""The files of a comparison: damaged ones, and a person's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limner.core import LimnerError
from limner.evaluation import compare as comparing
from limner.evaluation.advice import advice
from limner.evaluation.compare import read_row
from limner.evaluation.options import CompareOptions
from limner.evaluation.results import Cost, Row
from limner.evaluation.tables import comparison_row
from limner.fields import to_json
from tests.test_files import DAMAGED

OPTIONS = CompareOptions(budget="1s")
ROW = Row(family="vae", peak_memory=1, cost=Cost(1, 2, 3.0, 4.0, 5.0))


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compare without training: every family is measured as ROW is."""
    asked = []
    monkeypatch.setattr(comparing, "_train", lambda name, *_: asked.append(name) or 1)
    monkeypatch.setattr(comparing, "_measure", lambda *_: (ROW.cost, None))

    def run(*names: str) -> list[str]:
        asked.clear()
        comparing.compare(["shapes"], names, tmp_path, OPTIONS)
        return list(asked)

    return run


@pytest.mark.parametrize(
    "content", [*DAMAGED.values(), b"{}", b'{"family": 3}', b'{"family": "vae", "kid": []}']
)
def test_a_damaged_row_is_measured_again(content: bytes, compare, tmp_path: Path) -> None:
    assert compare("vae", "flow") == ["vae", "flow"] and compare("vae", "flow") == []
    (tmp_path / "vae.json").write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"vae\.json is damaged.* vae is measured again.* now vae\.json\.damaged\."
    ):
        assert compare("vae", "flow") == ["vae"]
    assert json.loads((tmp_path / "vae.json").read_text()) == ROW.to_json()
    assert (tmp_path / "vae.json.damaged").read_bytes() == content and compare("vae", "flow") == []


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_settings_are_one_sentence(content: bytes, compare, tmp_path: Path) -> None:
    compare("vae")
    (tmp_path / "comparison.json").write_bytes(content)
    with pytest.raises(LimnerError, match=r"comparison\.json is damaged.*name another folder with --to"):
        compare("vae")


@pytest.mark.parametrize("name", ["vae.json", "report.json", "report.html"])
def test_a_persons_own_file_is_in_the_way(name: str, compare, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"name": "mine"}')
    with pytest.raises(LimnerError, match=rf"{name} was not written by limner compare"):
        compare("vae")
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing is added or removed"
    assert compare("flow") == ["flow"] if name == "vae.json" else True


def test_a_family_whose_file_is_a_persons_own_is_set_aside(compare, tmp_path: Path) -> None:
    compare("flow")
    (tmp_path / "vae.json").write_text('{"name": "mine"}')
    with pytest.warns(UserWarning, match="measured again"):
        assert compare("flow", "vae") == ["vae"]
    assert (tmp_path / "vae.json.damaged").read_text() == '{"name": "mine"}'
    assert to_json(OPTIONS)["budget"] == "1s"


def test_a_row_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    figure = {"value": 1.0, "low": 0.5, "high": 2.0, "floor": 0.5, "floor_n": 20}
    figures = dict.fromkeys(("kid", "frechet", "precision", "recall", "density", "coverage"), figure)
    row = ROW.to_json() | figures | {
        "n": 20, "real": 60, "size": [16, 16], "features": "random", "features_hash": "", "resize": "",
        "memorised": 0.25, "memorised_held_out": 0.05, "identical": 0, "sliced_wasserstein": {}, "notes": [],
    }  # fmt: skip
    (tmp_path / "vae.json").write_text(json.dumps(row))
    found = read_row(tmp_path / "vae.json")
    assert found.fidelity and found.fidelity.memorised == 0.25 and found.fidelity.copies is None
    assert "25%" in comparison_row(found) and "Take vae" in advice([found])
