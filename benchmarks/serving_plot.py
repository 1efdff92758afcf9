"""docs/serving.svg, images a second against clients: tables.py draws it from what `serving.py clients` recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from limner.evaluation.report import COLOURS, number, ticks

KINDS = {
    "single": ("6 4", -6),
    "exact": ("", 0),
    "quick": ("2 3", 6),
}  # dashes, pixels aside: intervals overlap
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 620, 300, 52, 16, 62, 44
STYLE = (
    "svg{font:13px sans-serif}.paper{fill:#fff}text{fill:#333}.grid{stroke:#ddd}"
    "@media(prefers-color-scheme:dark){.paper{fill:#14181f}text{fill:#d5dbe5}.grid{stroke:#3a4250}"
    "g{filter:brightness(1.4)}}"
)

Row = Mapping[str, Any]


def plot(rows: Sequence[Row]) -> str:
    """An SVG with a panel for each precision and number of threads. Raises ValueError where there are no rows."""
    panels: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["clients"]):
        threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        panels.setdefault(f"{row['precision']}, {threads}", []).append(row)
    if not panels:
        raise ValueError("There are no rows to draw: run benchmarks/serving.py clients --record first.")
    width, height = WIDTH, HEIGHT * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="images a second against clients"><style>{STYLE}</style>',
        f'<rect class="paper" width="{width}" height="{height}"/>',
    ]
    for i, (title, some) in enumerate(panels.items()):
        parts += [f'<svg y="{HEIGHT * i}" width="{WIDTH}" height="{HEIGHT}">', *panel(title, some), "</svg>"]
    return "\n".join([*parts, "</svg>", ""])


def panel(title: str, rows: Sequence[Row]) -> list[str]:
    """Its parts. Clients are on a scale of powers of two."""
    most = max(row[kind][2] for row in rows for kind in KINDS)
    first, last = (math.log2(rows[i]["clients"]) for i in (0, -1))

    def x(clients: float) -> float:
        share = (math.log2(clients) - first) / (last - first or 1)
        return LEFT + 12 + share * (WIDTH - LEFT - RIGHT - 24)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / most * (HEIGHT - TOP - BOTTOM)

    def text(at: float, height: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{at:.1f}" y="{height:.1f}" text-anchor="{anchor}">{words}</text>'

    parts = [text(LEFT, 20, f"images a second; {title}", "start")]
    for value in ticks(0, most):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text(LEFT - 8, y(value) + 4, number(value), "end"))
    for row in rows:
        parts.append(text(x(row["clients"]), HEIGHT - BOTTOM + 18, f"{row['clients']}"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "clients at once"))
    for i, (colour, (kind, (dashes, aside))) in enumerate(zip(COLOURS, KINDS.items(), strict=False)):
        places = [(x(row["clients"]) + aside, *map(y, row[kind])) for row in rows]
        line = " ".join(f"{at:.1f},{middle:.1f}" for at, middle, _, _ in places)
        bars = "".join(f"M{at:.1f} {low:.1f}V{high:.1f}M{at - 3:.1f} {low:.1f}h6M{at - 3:.1f} {high:.1f}h6"
                       for at, _, low, high in places)  # fmt: skip
        dots = "".join(f"M{at:.1f} {middle:.1f}h0" for at, middle, _, _ in places)
        key = LEFT + 84 * i
        parts += [
            f'<g fill="none" stroke="{colour}" stroke-width="2">',
            f'<path d="M{key} 40h26" stroke-dasharray="{dashes}"/>',
            f'<polyline points="{line}" stroke-dasharray="{dashes}"/>',
            f'<path d="{bars}" stroke-width="1.5"/><path d="{dots}" stroke-width="7" stroke-linecap="round"/>',
            "</g>",
            text(key + 32, 44, kind, "start"),
        ]
    return parts
