"""Self-contained HTML pages: curves as SVG, pictures inside the file, no scripts, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from pathlib import Path

from PIL import Image

from limner.training.journal import COUNTS

COLOURS = ("#3060c9", "#c2542d", "#2f8f5b", "#8a4fb0", "#b58a00", "#5f6b7a", "#c23b7a", "#1f8a99")


STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667083; --line: #d9dee7; --paper: #fbfaf7; --card: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #333b48; --paper: #14181f; --card: #1b212a }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif }
h1 { font-size: 1.9rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
p { max-width: 62rem } p.lead { color: var(--soft); margin: 0 0 1.5rem }
.figures { display: flex; flex-wrap: wrap; gap: .75rem }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1.1rem; min-width: 9rem }
.figure b { display: block; font-size: 1.5rem } .figure span { color: var(--soft); font-size: .85rem }
img { max-width: 100%; border: 1px solid var(--line); border-radius: 8px; background: #fff }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(14rem, 100%), 1fr)); gap: 1rem }
.row.wide { grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)) } .row figure { margin: 0 }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .25rem }
svg { width: 100%; height: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px }
svg text { fill: var(--soft); font-size: 12px } svg .grid { stroke: var(--line) }
section { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums }
td, th { text-align: left; vertical-align: top; padding: .35rem .4rem; border-bottom: 1px solid var(--line) }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; overflow-x: auto; font-size: .82rem }
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page from (heading, HTML) pairs."""
    body = "\n".join(f"<section><h2>{html.escape(head)}</h2>\n{inner}</section>" for head, inner in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n{body}\n</body></html>\n'
    )


def figures(values: Mapping[str, str]) -> str:
    """Headline figures as cards, from label -> figure."""
    card = '<div class="figure"><b>{}</b><span>{}</span></div>'
    cards = (card.format(html.escape(figure), html.escape(label)) for label, figure in values.items())
    return f'<div class="figures">{"".join(cards)}</div>'


def picture(image: Image.Image | Path, caption: str = "") -> str:
    """A picture inside the page, with a caption."""
    file = io.BytesIO(image.read_bytes() if isinstance(image, Path) else b"")
    if isinstance(image, Image.Image):
        image.save(file, "PNG")
    text, encoded = html.escape(caption), base64.b64encode(file.getvalue()).decode()
    return f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}"><figcaption>{text}</figcaption></figure>'


def row(pictures: Sequence[str]) -> str:
    return f'<div class="row">{"".join(pictures)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(v)}</{tag}>" for v in values) + "</tr>"

    return f"<table>{cells('th', head)}{''.join(cells('td', r) for r in rows)}</table>"


def number(value: float, digits: int = 3) -> str:
    """Rounded to significant digits and without an exponent: 1,540 rather than 1.54e+03."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most ``count`` + 1 round numbers from low to high: steps of 1, 2 or 5 times a power of ten."""
    smallest = (high - low) / count
    power = 10 ** math.floor(math.log10(smallest))
    step = next(power * by for by in (1, 2, 5, 10) if power * by >= smallest * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of round numbers from 10^low to 10^high: powers of ten, or also 2 and 5 times them."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1,), (1, 2, 5)):
        places = sorted(i + math.log10(by) for i in powers for by in factors)
        places = [at for at in places if low - 1e-9 <= at <= high + 1e-9]
        if len(places) >= 3:
            return places[:: -(-len(places) // 8)]
    return [math.log10(value) for value in ticks(10**low, 10**high) if value > 0]  # too short for a log scale


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, log: bool = False,
    log_x: bool = False, width: int = 760, height: int = 300,
) -> str:  # fmt: skip
    """Lines over a shared pair of axes, as SVG. Points that are not finite are left out."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, points in series.items():
        shown = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
        if shown:
            lines[name] = [(math.log10(x) if log_x else x, math.log10(y) if log else y) for x, y in shown]
    if not lines:
        return "<p>Nothing to plot yet.</p>"
    keys, rows = _legend(list(lines), left := 64, width)
    right, bottom, top = 20, 44, 34 + 18 * (rows - 1)
    height += 18 * (rows - 1)
    xs, ys = zip(*chain.from_iterable(lines.values()), strict=True)
    x0, x1 = min(xs), max(xs)
    x1 += 0 if x1 > x0 else 1e-9 + abs(x0) * 1e-9
    margin = 0.05 * (max(ys) - min(ys) or abs(max(ys)) or 1)
    y0, y1 = min(ys) - margin, max(ys) + margin

    def px(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (width - left - right)

    def py(y: float) -> float:
        return top + (y1 - y) / (y1 - y0) * (height - top - bottom)

    def text(x: float | str, y: float | str, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(words)}</text>'

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(y_label)}">']
    for at in log_ticks(y0, y1) if log else ticks(y0, y1):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{py(at):.1f}" y2="{py(at):.1f}"/>'
        )
        parts.append(text(left - 8, f"{py(at) + 4:.1f}", number(10**at if log else at), "end"))
    for at in log_ticks(x0, x1) if log_x else ticks(x0, x1):
        parts.append(text(f"{px(at):.1f}", height - bottom + 18, number(10**at if log_x else at)))
    parts.append(text((left + width) / 2, height - 8, x_label))
    for colour, (name, points), (x, y) in zip(cycle(COLOURS), lines.items(), keys, strict=False):
        places = [f"{px(a):.1f},{py(b):.1f}" for a, b in points]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(places)}"/>'
        )
        if len(points) == 1:
            parts.append(
                f'<circle cx="{px(points[0][0]):.1f}" cy="{py(points[0][1]):.1f}" r="4" fill="{colour}"/>'
            )
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="{y + 6}">{html.escape(name)}</text>')
    return "".join(parts) + "</svg>"


def _legend(names: Sequence[str], left: int, width: int) -> tuple[list[tuple[int, int]], int]:
    """Where each name stands above the curves, and how many lines they take."""
    places, x, line = [], left, 0
    for name in names:
        size = 34 + 7 * len(name)
        if x > left and x + size > width:
            x, line = left, line + 1
        places.append((x, 12 + 18 * line))
        x += size
    return places, line + 1


def plots(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], x_label: str) -> str:
    """Small ``curves`` side by side, each with its own axes, on a log scale where all values are positive."""
    parts = []
    for name, series in panels.items():
        log = all(y > 0 for points in series.values() for _, y in points)
        svg = curves(series, x_label, name, log, width=400, height=220)
        parts.append(f"<figure>{svg}<figcaption>{html.escape(name)}</figcaption></figure>")
    return f'<div class="row wide">{"".join(parts)}</div>'


def training_sections(run: Path, log: Sequence[Mapping[str, object]], config: str) -> list[tuple[str, str]]:
    """The loss curves, the samples during training and the settings of a run, from the lines of its log."""
    losses: dict[str, list[tuple[float, float]]] = {}
    counts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in log:
        for name, value in line.items():
            if "/" not in name or name.endswith("/gradient") or not isinstance(value, float):
                continue
            label, last = name.replace("held_out/", "held out: "), name.rpartition("/")[2]
            series = counts.setdefault(last.replace("_", " "), {}) if last in COUNTS else losses
            series.setdefault(label, []).append((float(line["seen"]), value))  # type: ignore[arg-type]
    log_scale = all(y > 0 for points in losses.values() for _, y in points)
    thin = {name: _thin(points) for name, points in losses.items()}
    sections = [("Loss", curves(thin, "images seen", "loss", log=log_scale))]
    if counts:
        sections.append(("Codes", _codes(counts)))
    if remarks := [str(line["remark"]) for line in log if "remark" in line]:
        sections.append(("Remarks", "".join(f"<p>{html.escape(remark)}</p>" for remark in remarks)))
    pictures = [line for line in log if "picture" in line and (run / str(line["picture"])).exists()]
    if len(pictures) > 6:
        pictures = [pictures[round(i * (len(pictures) - 1) / 5)] for i in range(6)]
    cells = [picture(run / str(line["picture"]), f"after {line['seen']:,} images") for line in pictures]
    if cells:
        sections.append(("Samples during training", row(cells)))
    return [*sections, ("Settings", f"<pre>{html.escape(config)}</pre>")]


def _codes(counts: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    """The use of a codebook in training: the last figures in words, and a small curve of each."""
    trained = {title: next(iter(series.values())) for title, series in counts.items()}
    last = ", ".join(f"{title} {points[-1][1]:,.0f}" for title, points in trained.items())
    curve = {title: {title: _thin(points)} for title, points in trained.items()}
    return f"<p>At the end: {html.escape(last)}.</p>{plots(curve, 'images seen')}"


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over groups of neighbouring points, so that a long log makes a small page."""
    size = max(1, len(points) // 300)
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
