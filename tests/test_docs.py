"""The documents' tables are what the recorded figures and the families say."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return runpy.run_path(str(BENCHMARKS / "tables.py"))


def test_no_table_is_stale(tables, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit) as end:
        tables["main"]()
    assert end.value.code == 0, capsys.readouterr().out


def test_a_changed_figure_makes_a_document_stale(tables):
    name = "docs/results.md"
    text = (BENCHMARKS.parent / name).read_text("utf-8")
    assert tables["fill"](name, text.replace("|---|", "|--|", 1)) == text


def test_cells(tables):
    show = tables["show"]
    assert show([1.5, 1, 2000]) == "1.5 (1 to 2,000)"
    assert show(None) == "" and show(1450.0) == "1,450" and show(5e-7) == "5.0e-7" and show("flow") == "flow"
    assert tables["is_met"]([1.4, 1.2, 1.9], "<= 1.5") and not tables["is_met"](7.9, ">= 8")


def test_results_stay_short(tables):
    words = (BENCHMARKS.parent / "docs" / "results.md").read_text("utf-8").split()
    assert len(words) < 1500
