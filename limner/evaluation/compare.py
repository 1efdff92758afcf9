"""Which model suits my images? Several families, one source, one budget of time, measured alike: one report."""

from __future__ import annotations

import ctypes
import html
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from limner import checkpoint, families, files
from limner.config import parse_budget
from limner.core import Generates, LimnerError
from limner.evaluation import report
from limner.evaluation.advice import advice
from limner.evaluation.checks import check_held_out, refuse_few
from limner.evaluation.clips import DRAWN, without_stills
from limner.evaluation.fidelity import draw_samples, measure_samples
from limner.evaluation.options import CompareOptions
from limner.evaluation.prompts import measure_prompts
from limner.evaluation.real import open_whole
from limner.evaluation.results import Comparison, Cost, Fidelity, Row
from limner.evaluation.spaces import find_all, measure_beside, trained_in
from limner.evaluation.tables import COST, QUALITY, compared, comparison_table, measured_in, ranked
from limner.fields import from_json, to_json
from limner.inference.pipeline import Pipeline
from limner.progress import bar
from limner.settings import Stopped, signal_of
from limner.training.journal import COUNTS, read_log

LIBC = ctypes.CDLL(None)
ABOUT = "comparison.json"  # the settings
SHEETS = "drawn.png", "nearest.png"  # in each run's folder
STOPS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP  # signals that ask a training to save and end


class Killed(LimnerError):
    """A signal that does not ask to stop ended a training, such as SIGKILL where memory ran out."""


def compare(
    sources: Sequence[str], names: Sequence[str], to: str | Path = "runs/compare",
    options: CompareOptions = CompareOptions(), extra: Sequence[str] = (),
) -> Comparison:  # fmt: skip
    """Train each family for the same time, measure all alike, and write report.html and report.json into ``to``.

    Finished rows in that folder are kept, and an unfinished training is resumed. A family that fails gets a row with
    the reason. Stopped by a signal, it returns the rows so far; the training that ran has saved and ended. ``extra``
    arguments go to every training. Raises LimnerError when a family does not exist or does not draw, or the folder
    is in use or holds another comparison.
    """
    to = Path(to)
    for name in names:
        if not families.supports(name, Generates):
            raise LimnerError(
                f"{name} draws no images to compare: leave it out, or measure it with limner evaluate."
            )
    if not names:
        raise LimnerError(
            f"Name the families to compare: --families {','.join(families.supporting(Generates)[:3])}."
        )
    settings = {"sources": list(sources), **to_json(options), "extra": list(extra)}
    parse_budget(options.budget, 1)
    if not any("data.frames" in word for word in extra):  # a film has many clips
        refuse_few(sources)
    _check_folder(names, to, settings)
    with checkpoint.lock(to, "--to"):
        files.write_json(to / ABOUT, settings)
        return _compare(names, to, Comparison(
            sources=list(sources), options=options, extra=list(extra), rows=[], ranking=[], advice=advice([])
        ))  # fmt: skip


def _compare(names: Sequence[str], to: Path, result: Comparison) -> Comparison:
    """Train and measure each family that is not finished, and add its row to the result."""
    rows: list[Row] = []
    for name in names:
        row = _finished_row(name, to)
        if not row:
            _refuse_in_use(to / name)
            row = Row(family=name)
            try:
                row = replace(row, peak_memory=_train(name, to / name, result))
                cost, fidelity = _measure(to / name, result.sources, result.options)
                row = replace(row, cost=cost, fidelity=fidelity)
                files.write_json(to / f"{name}.json", row.to_json())
            except LimnerError as error:  # it is tried again by the next call
                row = replace(row, failed=str(error), unfinished=isinstance(error, Killed) or None)
            except KeyboardInterrupt as stop:
                return replace(result, stopped=signal_of(stop))
        rows.append(row)
        result = replace(result, rows=rows, ranking=[row.family for row in ranked(rows)], advice=advice(rows))
        _write(to, result)
    return result


def _check_folder(names: Sequence[str], to: Path, settings: dict[str, Any]) -> None:
    """Raises LimnerError for the folder of another comparison, or one with a person's own files in the way."""
    files.check_writable(to, folder=True)
    about = to / ABOUT
    if about.exists():
        try:
            same = files.read_json(about) == settings
        except files.Damaged as error:
            raise LimnerError(
                f"{error} So nobody knows how the runs beside it were trained: name another folder with --to."
            ) from None
        if not same:
            raise LimnerError(f"{to} holds a comparison with other settings: name another folder with --to.")
        return
    written = ["report.html", "report.json", *(f"{name}.json" for name in names)]
    if others := [to / name for name in written if (to / name).exists()]:
        raise LimnerError(f"{others[0]} was not written by limner compare: name another folder with --to.")


def _finished_row(name: str, to: Path) -> Row | None:
    """What was measured of a family by an earlier call; None, with a warning, where that is damaged."""
    path = to / f"{name}.json"
    if not path.exists():
        return None
    try:
        row = read_row(path)
        if row.family == name and row.cost:
            return row
    except LimnerError:
        pass
    aside = files.set_aside(path)
    warnings.warn(
        f"{path} is damaged, or somebody's own: {name} is measured again, and the file is now {aside.name}.",
        stacklevel=2,
    )
    return None


def read_row(path: Path) -> Row:
    """A row as ``Row.to_json`` wrote it. Raises LimnerError for anything else."""
    data = files.read_json(path)
    data.pop("memorised_held_out", None)  # which earlier versions wrote
    for part, kind in (("cost", Cost), ("fidelity", Fidelity)):
        if found := {f.name: data.pop(f.name) for f in fields(kind) if f.name in data}:
            data[part] = found
    return from_json(Row, data, str(path))


def _refuse_in_use(run: Path) -> None:
    """Raises LimnerError while another training works in the folder: the family has not failed then."""
    if (run / checkpoint.LOCK).exists():
        with checkpoint.lock(run, "--to"):
            pass


def _train(name: str, run: Path, asked: Comparison) -> int:
    """Train in a process of its own, so that each has its own memory, and a crash ends only one; its peak in bytes.

    Raises LimnerError with the reason where it fails, Killed where a signal that does not ask to stop ended it, and
    KeyboardInterrupt, when it has saved and ended, where a signal asked it or this process to stop.
    """
    options = asked.options
    command = [sys.executable, "-m", "limner.cli", "train", name, *asked.sources, "--out", str(run)]
    command += ["--budget", options.budget, "--seed", str(options.seed), *asked.extra]
    command += ["--preset", options.preset] if options.preset else []
    command += ["--size", options.size] if options.size else []
    command += ["--resume"] if (run / "config.json").exists() else []  # perhaps only of a parent so far
    print(f"\n{name}: training for {options.budget}", file=sys.stderr, flush=True)
    with_parent = _end_with_parent if sys.platform == "linux" else None
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=with_parent
    )
    try:
        last = _show_errors(process)
    except KeyboardInterrupt:
        _stop(process)
        raise
    _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
    if ended := -code if code < 0 else code - 128 if code > 128 else 0:
        if ended in STOPS:
            raise Stopped(ended)
        raise Killed(
            f"its training was ended by {signal.Signals(ended).name}, perhaps for want of memory: "
            "the same command continues it"
        )
    if code:
        raise LimnerError(_reason(last) or f"it ended with code {code}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _end_with_parent() -> None:
    """Have Linux ask this process to stop when the one that started it is gone, even by SIGKILL."""
    LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _show_errors(process: subprocess.Popen[str]) -> deque[str]:
    """Show what the process writes to stderr as it comes; its last lines."""
    assert process.stderr is not None
    last: deque[str] = deque(maxlen=20)
    for line in process.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        last.append(line.strip())
    return last


def _stop(process: subprocess.Popen[str]) -> None:
    """Ask a training to save and end, and wait for that; a second Ctrl-C ends it at once."""
    process.send_signal(signal.SIGTERM)  # SIGINT would be its second one, if Ctrl-C has reached it too
    try:
        _show_errors(process)
        process.wait()
    except KeyboardInterrupt:
        process.kill()
        process.wait()


def _reason(lines: Sequence[str]) -> str:
    """Why a command ended: its error message, or what was wrong with its options, or its last line."""
    plain = [line.strip(" │╭╮╰╯─") for line in lines]
    for start in ("limner: ", "Unrecognized options", ""):
        if matching := [line for line in plain if line.startswith(start) and line]:
            return matching[-1].removeprefix("limner: ")
    return ""


def _measure(run: Path, sources: Sequence[str], options: CompareOptions) -> tuple[Cost, Fidelity | None]:
    pipeline = Pipeline(run)
    header = pipeline.loaded.header
    real = without_stills(open_whole(sources, pipeline.spec, pipeline.loaded.run.data, progress=False))
    n = options.n or min(1000 if pipeline.spec.frames == 1 else DRAWN, len(real))
    start = time.perf_counter()
    with bar(f"drawing {n} {pipeline.spec.noun}s") as watch:
        samples = draw_samples(pipeline, real, n, options.seed, watch)
    drawing = time.perf_counter() - start
    features, *others = find_all(options.features, clips=pipeline.spec.frames > 1)
    fidelity = measure_samples(samples, real, features, run, options.seed, k=options.k)
    prompts = measure_prompts(pipeline, sources, real, options.seed)
    if fidelity and prompts:
        fidelity = prompts.add_to(fidelity)
    if fidelity:
        beside = measure_beside(samples, real, others, options.seed, k=options.k)
        notes = [*fidelity.notes, *trained_in(pipeline.loaded.run.model, [features, *others])]
        notes.append(str(check_held_out(pipeline, sources, real, quiet=True)))
        fidelity = replace(fidelity, other_features=beside, notes=notes)
    seen, seconds = header["seen"], header.get("seconds", 0.0)
    parameters = sum(p.numel() for p in pipeline.model.parameters())
    return Cost(parameters, seen, seconds, seen / max(seconds, 1e-9), 1000 * drawing / n), fidelity


def _write(to: Path, result: Comparison) -> None:
    order = ranked(result.rows)
    losses = {row.family: curves for row in order if (curves := _held_out_losses(to / row.family))}
    drawn = [row.family for row in order if all((to / row.family / sheet).exists() for sheet in SHEETS)]
    pictures, copies = ([report.picture(to / name / sheet, name) for name in drawn] for sheet in SHEETS)
    sections = [
        ("Advice", f"<p>{html.escape(result.advice)}</p>"),
        ("Figures", report.table(*comparison_table(order, QUALITY))),
        *(
            [("Cost", report.table(*comparison_table(paid, COST)))]
            if (paid := [r for r in order if r.cost])
            else []
        ),
        ("Samples", report.row(pictures)),
        ("Held-out loss: each family's own, not to be compared", report.plots(losses, "seconds")),
        ("The nearest training images: copies would show here", report.row(copies)),
    ]
    page = report.page("Which model suits these images", _lead(result), sections)
    with files.together():
        files.write_text(to / "report.html", page)
        files.write_json(to / "report.json", result.to_json())


def _lead(result: Comparison) -> str:
    """What was done, in a sentence or three."""
    options = result.options
    lead = f"{', '.join(result.sources)}: each family trained for {options.budget}, seed {options.seed}."
    figures = next((row.fidelity for row in ranked(result.rows) if row.fidelity), None)
    if figures:
        kid, frechet = (report.number(figure.floor) for figure in (figures.kid, figures.frechet))
        precision, recall = (f"{figure.floor:.0%}" for figure in (figures.precision, figures.recall))
        lead += (
            f" {compared(figures)} That is a kernel distance of {kid}, a Frechet distance of {frechet}, a precision of "
            f"{precision} and a recall of {recall}, with {figures.precision.k or 5} neighbours. Features "
            f"{measured_in([figures, *figures.other_features.values()])}. {' '.join(figures.notes)}"
        )
    return lead


def _held_out_losses(run: Path) -> dict[str, list[tuple[float, float]]]:
    """(seconds, value) by the name of each loss."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in read_log(run):
        for name, value in line.items():
            if "held_out/" in name and isinstance(value, float) and not name.endswith(COUNTS):
                curves[name.removeprefix("held_out/")].append((float(line["seconds"]), value))
    return dict(curves)
