"""The pages: numbers that a person reads, axes with round ones, names that all find a place."""

import math
import re

import pytest

from limner.evaluation import report


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1540.2, "1,540"), (-29.41, "-29.4"), (999.6, "1,000"), (5.798, "5.8"), (0.0123456, "0.0123"), (0, "0")],
)
def test_numbers_are_written_without_exponents(value: float, shown: str) -> None:
    assert report.number(value) == shown


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 1199.9), (-0.27, 1.91), (5, 5.0001), (-3e5, 8e5)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = report.ticks(low, high)
    assert 2 <= len(found) <= 6
    assert low - 1e-6 * (high - low) <= found[0] and found[-1] <= high + 1e-6 * (high - low)
    step = found[1] - found[0]
    assert step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(
        min((1, 2, 5, 10), key=lambda by: abs(by - step / 10 ** math.floor(math.log10(step) + 1e-9)))
    )


@pytest.mark.parametrize(("low", "high"), [(0.001, 0.002), (0.1, 5), (1, 1e9), (0.142, 0.36)])
def test_ticks_of_a_log_scale_are_round_too(low: float, high: float) -> None:
    found = [10**at for at in report.log_ticks(math.log10(low), math.log10(high))]
    assert 2 <= len(found) <= 8
    for value in found:
        assert low * 0.999 <= value <= high * 1.001
        assert float(f"{value:.2g}") == pytest.approx(value), "two digits say it"


def test_many_names_take_more_lines_and_stay_inside() -> None:
    series = {f"a family's rather long name {i}": [(0.0, 1.0), (1.0, 2.0)] for i in range(12)}
    svg = report.curves(series, "seconds", "loss")
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())  # type: ignore[union-attr]
    keys = re.findall(r'<text x="(\d+)" y="(\d+)">(a family[^<]*)<', svg)
    assert len(keys) == 12 and len({y for _, y, _ in keys}) > 2
    assert all(int(x) + 7 * 28 <= width for x, _, _ in keys)
    top = min(float(y) for y in re.findall(r'y1="([\d.]+)"', svg))
    assert top > max(int(y) for _, y, _ in keys), "the lines begin below the names"
    assert height > 300


def test_one_point_and_none_and_what_is_not_finite_are_drawn() -> None:
    assert "Nothing to plot" in report.curves({"loss": [(1.0, math.nan)]}, "x", "y")
    assert "<circle" in report.curves({"loss": [(0.0, 0.0)]}, "x", "y")
    assert "nan" not in report.curves({"loss": [(0.0, 1.0), (1.0, math.inf), (2.0, 3.0)]}, "x", "y", log=True)


def test_plots_stand_side_by_side_each_on_its_own_axes() -> None:
    drawn = report.plots(
        {"<flow>": {"loss": [(0.0, 0.1), (1.0, 0.05)]}, "gan": {"loss": [(0.0, -3.0), (1.0, 2.0)]}}, "seconds"
    )
    assert drawn.count("<svg") == 2 and "&lt;flow&gt;" in drawn and "<flow>" not in drawn
    assert ">-2<" in drawn and ">0.06<" in drawn


def test_the_use_of_a_codebook_is_no_loss(tmp_path):
    log = [
        {"seen": 32 * i, "seconds": 1.0 * i, "step": i, "tokenizer/pixels": 0.5, "tokenizer/codes_used": 10.0 * i,
         "tokenizer/perplexity": 4.0 * i} for i in range(1, 4)
    ]  # fmt: skip
    sections = dict(report.training_sections(tmp_path, [*log, {"seen": 96, "remark": "Only 3 < 4."}], "{}"))
    assert list(sections) == ["Loss", "Codes", "Remarks", "Settings"]
    assert "tokenizer/pixels" in sections["Loss"] and "perplexity" not in sections["Loss"]
    assert "At the end: codes used 30, perplexity 12." in sections["Codes"]
    assert "Only 3 &lt; 4." in sections["Remarks"]
    assert list(dict(report.training_sections(tmp_path, [log[0] | {}], "{}"))) == [
        "Loss",
        "Codes",
        "Settings",
    ]
