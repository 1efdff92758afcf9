"""The documents' tables are what the recorded figures and the families say."""

import re
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


def test_the_plot_of_serving_shows_each_figure_with_its_interval(tables):
    from serving_plot import plot

    rows = [
        {"clients": n, "precision": "float32", "threads": threads, "n": 5,
         "single": [5.0, 4.0, 6.0], "exact": [2.0 * n, 1.5 * n, 2.5 * n], "quick": [3.0 * n, 3.0 * n, 3.0 * n]}
        for threads in (2, 1) for n in (4, 1, 2)
    ]  # fmt: skip
    drawn = plot(rows)
    assert "float32, 2 threads" in drawn and "float32, 1 thread<" in drawn
    single, exact, quick = re.findall(r'<g fill="none" .*?</g>', drawn, re.DOTALL)[:3]
    lines = [
        [float(n) for n in re.split("[ ,]", re.findall('points="(.*?)"', group)[0])]
        for group in (single, exact)
    ]
    across, down = lines[1][::2], lines[1][1::2]
    assert across[1] - across[0] == pytest.approx(
        across[2] - across[1], abs=0.2
    )  # powers of two are evenly apart
    unit = (down[0] - down[1]) / 2  # of an image a second
    assert down[1] - down[2] == pytest.approx(4 * unit, abs=0.2) and len(set(lines[0][1::2])) == 1
    bars = [float(high) - float(low) for low, high in re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", exact)]
    assert [-bar / unit for bar in bars] == pytest.approx([1, 2, 4], abs=0.05)
    assert re.findall(r"M[\d.]+ ([\d.]+)V\1M", quick) and 'y="300"' in drawn
    with pytest.raises(ValueError, match="no rows"):
        plot([])
