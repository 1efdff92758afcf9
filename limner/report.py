"""Self-contained HTML pages: curves as SVG, pictures inside the file, no scripts, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

COLOURS = ("#3060c9", "#c2542d", "#2f8f5b", "#8a4fb0", "#b58a00", "#5f6b7a", "#c23b7a", "#1f8a99")

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667083; --line: #d9dee7; --paper: #fbfaf7; --card: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #333b48; --paper: #14181f; --card: #1b212a }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif }
h1 { font-size: 1.9rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
p.lead { color: var(--soft); margin: 0 0 1.5rem }
.figures { display: flex; flex-wrap: wrap; gap: .75rem }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1.1rem; min-width: 9rem }
.figure b { display: block; font-size: 1.5rem } .figure span { color: var(--soft); font-size: .85rem }
img { max-width: 100%; border: 1px solid var(--line); border-radius: 8px; background: #fff }
.row { display: flex; flex-wrap: wrap; gap: 1rem } .row figure { margin: 0; flex: 1 1 14rem }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .25rem }
svg { width: 100%; height: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px }
svg text { fill: var(--soft); font-size: 12px } svg .grid { stroke: var(--line) }
section { overflow-x: auto }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line) }
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
    """Headline numbers as cards: what it is -> the figure."""
    cards = (
        f'<div class="figure"><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>'
        for k, v in values.items()
    )
    return f'<div class="figures">{"".join(cards)}</div>'


def picture(image: Image.Image | Path, caption: str = "") -> str:
    """A picture inside the page, with a caption."""
    if isinstance(image, Path):
        data = image.read_bytes()
    else:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    text = html.escape(caption)
    encoded = base64.b64encode(data).decode()
    return f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}"><figcaption>{text}</figcaption></figure>'


def row(pictures: Sequence[str]) -> str:
    return f'<div class="row">{"".join(pictures)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(v)}</{tag}>" for v in values) + "</tr>"

    return f"<table>{cells('th', head)}{''.join(cells('td', r) for r in rows)}</table>"


def code(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, log: bool = False,
    log_x: bool = False,
) -> str:  # fmt: skip
    """Lines over a shared pair of axes, as SVG. Points that are not finite are left out."""
    width, height, left, right, top, bottom = 760, 300, 64, 20, 34, 44
    clean = {
        name: [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
        for name, points in series.items()
    }
    clean = {name: points for name, points in clean.items() if points}
    if not clean:
        return "<p>Nothing to plot yet.</p>"

    def up(y: float) -> float:
        return math.log10(y) if log else y

    def along(x: float) -> float:
        return math.log10(x) if log_x else x

    xs = [along(x) for points in clean.values() for x, _ in points]
    ys = [up(y) for points in clean.values() for _, y in points]
    x0, x1 = min(xs), max(max(xs), min(xs) + 1e-9)
    y0, y1 = min(ys), max(ys)
    y0, y1 = (y0 - 0.05 * (y1 - y0 or 1), y1 + 0.05 * (y1 - y0 or 1))

    def px(x: float) -> float:
        return left + (along(x) - x0) / (x1 - x0) * (width - left - right)

    def py(y: float) -> float:
        return top + (y1 - up(y)) / (y1 - y0) * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(y_label)}">']
    for i in range(5):
        value = y0 + (y1 - y0) * i / 4
        shown = 10**value if log else value
        y = py(shown)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{shown:.3g}</text>')
        x = x0 + (x1 - x0) * i / 4
        x = 10**x if log_x else x
        told = f"{x / 1000:.3g}k" if x >= 10_000 else f"{x:.3g}"
        parts.append(f'<text x="{px(x):.1f}" y="{height - bottom + 18}" text-anchor="middle">{told}</text>')
    parts.append(
        f'<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    offset = left
    for colour, (name, points) in zip(COLOURS * len(clean), clean.items(), strict=False):
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        if len(points) == 1:
            parts.append(
                f'<circle cx="{px(points[0][0]):.1f}" cy="{py(points[0][1]):.1f}" r="4" fill="{colour}"/>'
            )
        parts.append(f'<rect x="{offset}" y="12" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{offset + 17}" y="18">{html.escape(name)}</text>')
        offset += 34 + 7 * len(name)
    return "".join(parts) + "</svg>"


def training_sections(run: Path, log: Sequence[Mapping[str, object]], config: str) -> list[tuple[str, str]]:
    """The curves, the samples as training went on and the settings of a run, from its log's lines."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for line in log:
        for name, value in line.items():
            if "/" in name and not name.endswith("/gradient") and isinstance(value, float):
                told = name.replace("held_out/", "held out: ")
                lines.setdefault(told, []).append((float(line["seen"]), value))  # type: ignore[arg-type]
    positive = all(
        y > 0 for points in lines.values() for _, y in points
    )  # then the fall shows on a log scale
    sections = [("Loss", curves(_thin(lines), "images seen", "loss", log=positive))]
    pictures = [line for line in log if "picture" in line and (run / str(line["picture"])).exists()]
    if pictures:
        shown = (
            [pictures[round(i * (len(pictures) - 1) / 5)] for i in range(6)]
            if len(pictures) > 6
            else pictures
        )
        cells = [picture(run / str(line["picture"]), f"after {line['seen']:,} images") for line in shown]
        sections.append(("Samples as training went on", row(cells)))
    sections.append(("Settings", code(config)))
    return sections


def _thin(
    series: Mapping[str, list[tuple[float, float]]], most: int = 300
) -> dict[str, list[tuple[float, float]]]:
    """Means over runs of neighbouring points, so a long log stays a small page."""
    thin = {}
    for name, points in series.items():
        size = max(1, len(points) // most)
        parts = [points[i : i + size] for i in range(0, len(points), size)]
        thin[name] = [(p[-1][0], sum(y for _, y in p) / len(p)) for p in parts]
    return thin
