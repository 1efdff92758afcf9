"""How much of its quiet speed does Limner keep while other programs run?

    python benchmarks/busy.py quiet background busy sample ends --record

Real commands in real processes, beside busy loops of sessions of their own, as from another terminal: ``background``
is one at nice 10, ``busy`` one a processor at nice 0. Each figure stands beside the quiet one of the same call with
fixed threads. Processor time that neither the command nor the loops used is recorded: above 0.1 of a processor the
machine was not quiet, and a figure says little.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from record import RESULTS, record

from limner.files import read_json
from limner.inference.threads import processors
from limner.training.journal import read_log

LOOP = [sys.executable, "-c", "while True: pass"]
LIMNER = [sys.executable, "-m", "limner.cli"]
SECONDS = 20  # of each training
COLUMNS = {
    "what": "what", "rate": "images/s", "quiet": "quiet, fixed threads", "ratio": "ratio", "seconds": "seconds",
    "others": "other work",
}  # fmt: skip


def processor_seconds() -> tuple[float, float]:
    """Of the whole machine, and of this process and the children that it has waited for."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    busy = sum(fields) - fields[3] - fields[4]  # without idle and waiting for disks
    return busy / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


class Beside:
    """The other work of a block, and what nobody here used of the processors meanwhile."""

    def __init__(self, loops: int, nice: int):
        self.loops, self.nice, self.others = loops, nice, 0.0
        self.running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Beside:
        self.start, (self.machine, self.own) = time.monotonic(), processor_seconds()
        command = ["nice", "-n", str(self.nice), *LOOP]
        self.running = [subprocess.Popen(command, start_new_session=True) for _ in range(self.loops)]
        time.sleep(0.5)
        return self

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()
        self.running = []

    def __exit__(self, *_: object) -> None:
        self.end()
        machine, own = processor_seconds()
        seconds = time.monotonic() - self.start
        self.others = round(max(0.0, machine - self.machine - (own - self.own)) / seconds, 2)


@contextmanager
def folder() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp())
    try:
        yield place
    finally:
        shutil.rmtree(place)


def training(out: Path, threads: str, seconds: int) -> list[str]:
    return [
        *LIMNER, "train", "flow", "digits", "--size", "32", "--preset", "small", "--budget", f"{seconds}s",
        "--out", str(out), "--training.threads", threads,
    ]  # fmt: skip


def run(command: Sequence[str]) -> float:
    """Seconds."""
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - start


def train_rate(threads: str = "auto") -> float:
    """Images a second over a whole training, with its sample sheets and its checkpoints."""
    with folder() as place:
        run(training(place / "run", threads, SECONDS))
        last = [line for line in read_log(place / "run") if "step" in line][-1]
    return float(last["seen"] / last["seconds"])


def row(what: str, rate: float, quiet: float, others: float) -> dict[str, Any]:
    figures = {
        "rate": round(rate, 1),
        "quiet": round(quiet, 1),
        "ratio": round(rate / quiet, 3),
        "others": others,
    }
    print(what, figures, flush=True)
    return {"what": what, **figures}


def train_quiet() -> dict[str, Any]:
    """In turns, since a machine may change its speed."""
    with Beside(0, 0) as beside:
        rates = [train_rate(threads) for threads in (str(processors()), "auto", "auto", str(processors()))]
    return row("training, alone", sum(rates[1:3]) / 2, (rates[0] + rates[3]) / 2, beside.others)


def train_beside(what: str, loops: int, nice: int) -> dict[str, Any]:
    with Beside(0, 0) as alone:
        quiet = train_rate(str(processors()))
    with Beside(loops, nice) as beside:
        rate = train_rate()
    return row(f"training, {what}", rate, quiet, max(alone.others, beside.others))


def sample_busy() -> dict[str, Any]:
    n = 512

    def rate(place: Path, threads: str) -> float:
        command = [
            *LIMNER,
            "sample",
            str(place / "run"),
            "--to",
            str(place / "x.png"),
            "--threads",
            threads,
            "--n",
        ]
        start_up = run([*command, "1"])
        return n / (run([*command, str(n)]) - start_up)

    with folder() as place:
        run(training(place / "run", "auto", 5))
        with Beside(0, 0) as alone:
            quiet = rate(place, str(processors()))
        with Beside(processors(), 0) as beside:
            busy = rate(place, "auto")
    return row("sampling, one busy process a core", busy, quiet, max(alone.others, beside.others))


def work_ends() -> dict[str, Any]:
    """Seconds from the end of the other work to the first log line from which the rate is 0.9 of the quiet one."""
    quiet = train_rate(str(processors()))
    with folder() as place, Beside(processors(), 0) as beside:
        out = place / "run"
        process = subprocess.Popen(
            training(out, "auto", 75), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not (out / "log.jsonl").exists():
            time.sleep(0.05)
        time.sleep(25)
        beside.end()
        ended = read_log(out)[-1]["seconds"]
        process.wait()
        lines = [line for line in read_log(out) if "step" in line and line["seconds"] >= ended]
    fast = (x["seconds"] for x, y in itertools.pairwise(lines) if min(x["rate"], y["rate"]) > 0.9 * quiet)
    back = next(fast, float("inf"))
    print("back after", back - ended, "others", beside.others, flush=True)
    return {"what": "the old rate is back", "seconds": round(back - ended, 1), "others": beside.others}


PARTS = {
    "quiet": train_quiet,
    "background": lambda: train_beside("one background process at nice 10", 1, 10),
    "busy": lambda: train_beside("one busy process a core", processors(), 0),
    "sample": sample_busy,
    "ends": work_ends,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--record", action="store_true", help="write the rows, beside those of other parts")
    args = parser.parse_args()
    rows = [PARTS[name]() for name in args.parts]
    if args.record:
        file = RESULTS / "busy.json"
        before = read_json(file)["rows"] if file.exists() else []
        measured = {r["what"] for r in rows}
        note = f"flow small, digits at 32x32, {SECONDS} s each; other work: cores that neither we nor the loops used"
        record(
            "busy", COLUMNS, [*(r for r in before if r["what"] not in measured), *rows], note, processors()
        )


if __name__ == "__main__":
    main()
