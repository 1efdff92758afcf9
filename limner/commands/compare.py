"""`limner compare`: several families on the same images, in one report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limner.commands import print_json, say, table
from limner.commands.options import Sources, parse, select
from limner.evaluation.options import CompareOptions
from limner.settings import LimnerError, ThreadCount


@dataclass(frozen=True, kw_only=True)
class Options(CompareOptions):
    """Train several families for the same time on the same images, measure them alike, and report.

    Arguments after a lone -- go to every training: -- --data.no-labels
    """

    sources: Sources  # folders, archives, parquet files or built-in sets
    families: str  # names, separated by commas
    # folder for report.html, report.json and the runs; an unfinished comparison there is resumed
    to: str = "runs/compare"
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again
    json: bool = False  # print JSON


def run(argv: list[str]) -> int:
    end = argv.index("--") if "--" in argv else len(argv)
    given, extra = parse(Options, argv[:end], "compare"), argv[end + 1 :]
    if given.threads != "auto":  # of the trainings too, each a process of its own
        extra = ["--training.threads", str(given.threads), *extra]
    if not given.sources:
        raise LimnerError("Name the images to train on: limner compare SOURCE --families flow,vae.")
    from limner.evaluation.compare import compare
    from limner.evaluation.tables import COMPARISON_SHORT, comparison_table, ranked

    names = [name.strip() for name in given.families.split(",") if name.strip()]
    result = compare(given.sources, names, given.to, select(CompareOptions, given), extra)
    if result.stopped:
        say("Stopped. Resume with the same command.")
        return 128 + result.stopped
    if given.json:
        print_json(result)
    else:
        shown = [row for row in ranked(result.rows) if not row.failed]
        table(*comparison_table(shown, COMPARISON_SHORT))
        for row in result.rows:
            if row.failed:
                say(f"{row.family} {'did not finish' if row.unfinished else 'failed'}: {row.failed}")
        say(f"{result.advice}\nLook at {Path(given.to) / 'report.html'}.")
    return 1 if all(row.failed for row in result.rows) or any(row.unfinished for row in result.rows) else 0
