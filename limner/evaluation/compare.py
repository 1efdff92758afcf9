"""Which model suits my images? Several families, one source, one budget of time, measured alike: one report."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limner import families, files
from limner.config import parse_budget
from limner.core import LimnerError
from limner.evaluation import report
from limner.evaluation.evaluate import describe, draw_like, find_features, measure, nearest_pairs, open_real
from limner.inference.pipeline import Pipeline
from limner.pictures.grid import grid
from limner.progress import bar
from limner.training.journal import read_log

Row = dict[str, Any]


def compare(
    sources: Sequence[str],
    names: Sequence[str],
    budget: str = "5m",
    to: str | Path = "runs/compare",
    preset: str = "",
    size: str = "",
    n: int | None = None,
    features: str = "random",
    seed: int = 0,
    extra: Sequence[str] = (),
) -> list[Row]:
    """Train each family for the same time, measure all alike, and write report.html and report.json into ``to``.

    Finished rows there are kept, an unfinished training is gone on with. A family that fails takes a row that
    says why. Raises LimnerError when a family does not exist, or the folder holds another comparison.
    """
    to = Path(to)
    for name in names:
        if not hasattr(families.load(name), "sample"):
            raise LimnerError(
                f"{name} draws no images to compare: leave it out, or measure it with limner evaluate."
            )
    if not names:
        raise LimnerError(f"Name the families to compare: --families {','.join(families.names()[:3])}.")
    asked = {
        "sources": list(sources), "budget": budget, "preset": preset, "size": size, "n": n,
        "features": features, "seed": seed, "extra": list(extra),
    }  # fmt: skip
    parse_budget(budget, 1)
    to.mkdir(parents=True, exist_ok=True)
    about = to / "comparison.json"
    if about.exists() and json.loads(about.read_text("utf-8")) != asked:
        raise LimnerError(f"{to} holds a comparison with other settings: name another folder with --to.")
    files.write_json(about, asked)
    rows: list[Row] = []
    for name in names:
        kept = to / f"{name}.json"
        row: Row = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
        if not row:
            row = {"family": name, **_train(name, sources, budget, to / name, preset, size, seed, extra)}
            if row.get("stopped"):
                return rows
            if not row.get("failed"):
                row |= _measure(to / name, sources, n, features, seed)
            if not row.get("failed"):  # the next call tries again
                files.write_json(kept, row)
        rows.append(row)
        _write(to, asked, rows)
    return rows


def _train(
    name: str, sources: Sequence[str], budget: str, out: Path, preset: str, size: str, seed: int,
    extra: Sequence[str],
) -> Row:  # fmt: skip
    """A process of its own for each: one that dies takes nobody with it, and its memory is its own."""
    command = [sys.executable, "-m", "limner.cli", "train", name, *sources, "--out", str(out)]
    command += ["--budget", budget, "--seed", str(seed), *extra]
    command += ["--preset", preset] if preset else []
    command += ["--size", size] if size else []
    command += ["--resume"] if (out / "config.json").exists() else []  # perhaps of a stage alone
    print(f"\n{name}: training for {budget}", file=sys.stderr, flush=True)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said: deque[str] = deque(maxlen=20)
    try:
        for line in process.stderr:  # shown as it comes
            print(line, end="", file=sys.stderr, flush=True)
            said.append(line.strip())
    except KeyboardInterrupt:  # it went to the training too, which saves and ends
        process.wait()
        return {"stopped": True}
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code  # so that nobody waits for it again
    if code in (130, 143):
        return {"stopped": True}
    if code:
        return {"failed": _reason(said) or f"it ended with code {code}"}
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_memory": peak}


def _reason(said: Sequence[str]) -> str:
    """Why a command ended: its own sentence, or what was wrong with its options, or its last words."""
    lines = [line.strip(" │╭╮╰╯─") for line in said]
    for sign in ("limner: ", "Unrecognized options", ""):
        found = [line for line in lines if line.startswith(sign) and line]
        if found:
            return found[-1].removeprefix("limner: ")
    return ""


def _measure(run: Path, sources: Sequence[str], n: int | None, features: str, seed: int) -> Row:
    try:
        pipeline = Pipeline(run)
        spec, told = pipeline.spec, pipeline.loaded.header
        real = open_real(sources, spec, pipeline.loaded.run.data, progress=False)
        count = n or min(1000, len(real))
        start = time.perf_counter()
        with bar(f"drawing {count} images") as watch:
            drawn = draw_like(pipeline, real, count, seed, watch)
        drawing = time.perf_counter() - start
        with bar("describing") as watch:
            seen = describe(drawn, real, find_features(features), watch)
        with bar("measuring") as watch:
            figures = measure(drawn, real, seen, watch, seed)
        grid(drawn.images[:64], drawn.captions[:64] if drawn.captions else None).save(run / "drawn.png")
        sheet, words = nearest_pairs(drawn, real, seen)
        grid(sheet, words, columns=8).save(run / "nearest.png")
    except LimnerError as mistake:
        return {"failed": str(mistake)}
    seconds = told.get("seconds", 0.0)
    return {
        "parameters": sum(p.numel() for p in pipeline.model.parameters()),
        "seen": told["seen"],
        "seconds": seconds,
        "images_per_second": told["seen"] / max(seconds, 1e-9),
        "sampling_ms": 1000 * drawing / count,
        **figures,
    }


# The report ---------------------------------------------------------------------------------------------

HEAD = (
    "family", "kernel distance", "95% interval", "Frechet", "precision", "recall", "memorised", "parameters",
    "trained images/s", "ms to draw", "peak memory",
)  # fmt: skip


SHORT = {  # for a terminal: heading -> column of ``cells``
    "family": 0, "KID": 1, "Frechet": 3, "precision": 4, "recall": 5, "memorised": 6, "trained/s": 8, "ms to draw": 9,
}  # fmt: skip


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The best kernel distance first; what failed last."""
    return sorted(rows, key=lambda row: row["kid"]["value"] if "kid" in row else float("inf"))


def cells(row: Row) -> list[str]:
    """One row as text under ``HEAD``."""
    if "failed" in row:
        return [row["family"], f"failed: {row['failed']}", *[""] * (len(HEAD) - 2)]
    peak = row.get("peak_memory")
    return [
        row["family"],
        report.number(row["kid"]["value"]),
        f"{report.number(row['kid']['low'])}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{report.number(row['kid']['high'])}",
        report.number(row["frechet"]["value"]),
        f"{row['precision']['value']:.0%}",
        f"{row['recall']['value']:.0%}",
        f"{row['memorised']:.0%}" if "memorised" in row else "",
        f"{row['parameters'] / 1e6:.2f}M",
        f"{row['images_per_second']:,.0f}",
        f"{row['sampling_ms']:.1f}",
        f"{peak / 1e6:,.0f} MB" if peak else "",
    ]


def advice(rows: Sequence[Row]) -> str:
    """One sentence: what to take, and what to beware of."""
    good = [row for row in ranked(rows) if "kid" in row]
    if not good:
        return "No family could be trained on these images: see why in the table."
    best = good[0]
    said = f"Take {best['family']}"
    rivals = [row["family"] for row in good[1:] if row["kid"]["low"] <= best["kid"]["high"]]
    if rivals:
        said += f", or {' or '.join(rivals)}, which these {best['n']:,} images do not tell from it"
    if best["kid"]["low"] <= best["kid"]["floor"]:
        said += "; it is as near to your images as they are to each other"
    if best.get("memorised", 0) > 0.2:
        said += (
            f", but {best['memorised']:.0%} of its images are nearer to a training image than they should be"
        )
    elif best["recall"]["value"] < 0.3:
        said += ", but it shows only a part of what your images show: train it longer"
    return said + "."


def _write(to: Path, asked: Mapping[str, Any], rows: Sequence[Row]) -> None:
    order = ranked(rows)
    whole = {**asked, "rows": list(rows), "ranking": [r["family"] for r in order], "advice": advice(rows)}
    files.write_json(to / "report.json", whole)
    floor = next((row for row in order if "kid" in row), None)
    lead = f"{', '.join(asked['sources'])}: each family trained for {asked['budget']}, seed {asked['seed']}."
    if floor:
        kid, frechet = (report.number(floor[name]["floor"]) for name in ("kid", "frechet"))
        lead += (
            f" {floor['n']:,} images of each against {floor['real']:,} real ones, features {floor['features']} "
            f"{floor['features_hash']} ({floor['resize']}). Real against real at {floor['kid']['floor_n']:,} images: "
            f"kernel distance {kid}, Frechet {frechet}."
        )
    pictures, copies = [], []
    losses: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in order:
        run = to / row["family"]
        if (run / "drawn.png").exists():
            pictures.append(report.picture(run / "drawn.png", row["family"]))
            copies.append(report.picture(run / "nearest.png", row["family"]))
        for line in read_log(run):
            for name, value in line.items():
                if "held_out/" in name and isinstance(value, float):
                    curves = losses.setdefault(row["family"], {})
                    curves.setdefault(name.removeprefix("held_out/"), []).append(
                        (float(line["seconds"]), value)
                    )
    sections = [
        ("Advice", f"<p>{html.escape(advice(rows))}</p>"),
        ("Figures", report.table(HEAD, [cells(row) for row in order])),
        ("Samples", report.row(pictures)),
        ("Held-out loss: each family's own, not to be compared", report.plots(losses, "seconds")),
        ("The nearest training images: copies would show here", report.row(copies)),
    ]
    files.write_text(to / "report.html", report.page("Which model suits these images", lead, sections))
