"""Fills the generated parts of the documents: the tables of results and measures, the READMEs' table of families, and
the plot of serving.

    python benchmarks/tables.py            write them (make docs)
    python benchmarks/tables.py --check    exit with 1 where a document is stale

A generated part lies between ``<!-- NAME -->`` and ``<!-- end -->``: ``claims``, ``families``, or a file of
benchmarks/results/ with the columns that are shown: ``<!-- cost: family, rate, train -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (
    "docs/results.md",
    "docs/generators.md",
    "docs/text-to-image.md",
    "docs/image-to-image.md",
    "docs/video.md",
    "docs/serving.md",
    "docs/measures.md",
    "docs/gpu.md",
    "README.md",
    "README.zh-CN.md",
)
PART = re.compile(r"<!-- (?P<what>[^\n]+?) -->\n.*?<!-- end -->", re.DOTALL)

Table = Mapping[str, Any]


def load(name: str) -> Table:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def show(value: Any) -> str:
    """A cell as text: [value, low, high] with its interval, thousands apart, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, list):
        middle, low, high = map(show, value)
        return f"{middle} ({low} to {high})"
    if isinstance(value, float) and 0 < abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-")
    if isinstance(value, float) and value.is_integer() and abs(value) >= 100:
        value = int(value)
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    table = [heads, ["---"] * len(heads), *rows]
    return "\n".join("|" + "|".join(cells) + "|" for cells in table)


def results(name: str, wanted: Sequence[str]) -> str:
    """A line on what was run, and the table of the columns that are wanted."""
    table = load(name)
    columns = {key: title for key, title in table["columns"].items() if not wanted or key in wanted}
    note = f" {table['note']}." if table["note"] else ""
    about = f"`{table['command']}` ({table['machine']}; {table['date']}, {table['commit']}).{note}"
    return (
        about
        + "\n\n"
        + lines(list(columns.values()), ([show(row.get(k)) for k in columns] for row in table["rows"]))
    )


def claims() -> str:
    """Every figure that was aimed at: what was reached, whether that is enough, and where it comes from."""
    rows = []
    for claim in load("claims")["rows"]:
        table = load(claim["file"])
        (row,) = (r for r in table["rows"] if all(r.get(k) == v for k, v in claim["row"].items()))
        value, unit = row[claim["column"]], claim.get("unit", "")
        met = is_met(value, claim["target"])
        cells = (claim["claim"], show(value) + unit, claim["target"] + unit, "yes" if met else "**no**")
        rows.append([*cells, f"`{program(table['command'])}`", table["commit"]])
    return lines(["claim", "figure", "target", "met", "command", "commit"], rows)


def program(command: str) -> str:
    """The program of a command line; its options stand above the table that the figure comes from."""
    words = command.split(";")[0].removeprefix("python ").split()
    return " ".join(words[:2]) if words[0] in ("limner", "make") else words[0]


def is_met(value: Any, target: str) -> bool:
    """Whether the figure, whatever its interval, is on the target's side: ``<= 1.5`` or ``>= 90``."""
    sign, bound = target.split()
    figure = value[0] if isinstance(value, list) else value
    return figure <= float(bound) if sign == "<=" else figure >= float(bound)


WORDS = {
    "en": (
        "family",
        "what it is",
        "paper",
        "condition",
        {"label": "label", "text": "text", "given": "picture", "": "none"},
    ),
    "zh": ("流派", "是什么", "论文", "条件", {"label": "标签", "text": "文字", "given": "图片", "": "无"}),
}


def families(language: str) -> str:
    """What the families say of themselves; docs/families.zh.json has translations of it."""
    from limner.families import describe, names

    *heads, conditions = WORDS[language]
    about = json.loads((ROOT / "docs" / "families.zh.json").read_text("utf-8")) if language == "zh" else {}
    rows = []
    for family in map(describe, names()):
        papers = re.findall(r"[^;]*? \d{4}(?=,)", family.paper)
        kinds = [kind for kind in ("label", "text", "given") if kind in family.reads] or [""]
        named = f"`{family.family}`", about.get(family.family, family.about)
        rows.append(
            [*named, "; ".join(p.strip("; ") for p in papers), ", ".join(conditions[kind] for kind in kinds)]
        )
    return lines(heads, rows)


def fill(name: str, text: str) -> str:
    """A document with its generated parts made anew."""

    def part(match: re.Match[str]) -> str:
        what, _, columns = match["what"].partition(":")
        if what == "claims":
            made = claims()
        elif what == "families":
            made = families("zh" if "zh" in name else "en")
        else:
            made = results(what, [c.strip() for c in columns.split(",") if c.strip()])
        return f"<!-- {match['what']} -->\n{made}\n<!-- end -->"

    return PART.sub(part, text)


def plots() -> dict[str, str]:
    """Drawings that are made of recorded figures, by name."""
    from serving_plot import plot

    return {"docs/serving.svg": plot(load("serving_clients")["rows"])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 where something is stale"
    )
    check = parser.parse_args().check
    stale = []
    made = {name: fill(name, (ROOT / name).read_text("utf-8")) for name in DOCUMENTS}
    for name, text in (made | plots()).items():
        path = ROOT / name
        if not path.is_file() or path.read_text("utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale:
        print(("stale, run make docs: " if check else "written: ") + ", ".join(stale))
    sys.exit(1 if stale and check else 0)


if __name__ == "__main__":
    main()
