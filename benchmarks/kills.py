"""Does a training survive SIGKILL at any moment, and a save the failure of any system call?

    python benchmarks/kills.py --kills 200

Tiny runs of several families are killed at random moments (from --seed) and resumed, a share of them inside a save,
at system calls from its first to its last. After each kill the newest checkpoint must load, and at most one save
interval may be lost. When a run has ended, its weights and optimisers must equal those of an unbroken run bit for
bit. Then every system call of a save that changes files fails in turn, with a full disk or an input/output error:
the earlier checkpoint must be intact, nothing temporary left, and the bytes needed be said. Linux; the failing calls
x86-64.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from record import record
from system_calls import can_fail, can_trace, fork, mark, trace

from limner import checkpoint
from limner.config import preset_run
from limner.data import open_data
from limner.settings import LimnerError
from limner.training.journal import read_log
from limner.training.run import train

FAMILIES = "flow", "ddpm", "vae", "autoencoder", "dcgan", "biggan", "r3gan", "vit"
STEPS, STEPS_A_SAVE = 96, 8
KILL = -signal.SIGKILL
COLUMNS = {
    "family": "family", "kills": "SIGKILLs", "in_save": "of them in a save", "loadable": "a checkpoint loads",
    "lost": "steps lost at most", "interval": "steps a save", "ends": "ends, all bit-identical",
    "failed_calls": "calls of a save that failed", "intact": "an intact run after it",
}  # fmt: skip


@dataclass
class Tally:
    """What one family went through; anything wrong is in ``faults``."""

    family: str
    kills: int = 0
    in_save: int = 0
    loadable: int = 0
    lost: int = 0  # steps, the most
    ends: int = 0
    failed_calls: int = 0
    intact: int = 0
    faults: list[str] = field(default_factory=list)


class Trial:
    """One family's run, its unbroken end, and what kills it."""

    def __init__(self, family: str, source: str, place: Path, rng: random.Random):
        self.place, self.rng, self.tally, self.runs = place / family, rng, Tally(family), 0
        self.log, self.out = self.place / "stderr", self.place / "killed-0"
        self.place.mkdir(parents=True)
        run = preset_run(family, "tiny")
        batch = run.training.batch
        often = {"save_every": f"{STEPS_A_SAVE * batch}img", "log_every": 1, "samples": 0}
        training = replace(run.training, **often, evaluate_every="1h", sample_every="1h")
        self.run = replace(
            run, sources=(source,), size=(16, 16), budget=f"{STEPS * batch}img", training=training
        )
        self.batch, self.start = batch, time.perf_counter()
        unbroken = self.place / "unbroken"
        code = self.finish(unbroken)
        self.seconds = time.perf_counter() - self.start
        self.expected = checkpoint.resume(unbroken)
        if code or not self.expected:
            raise LimnerError(f"The unbroken run of {family} failed: {self.log.read_text()[-300:]}")
        self.begin()
        self.calls = trace(self.with_marks(2), self.log).calls  # of one save
        shutil.rmtree(self.out)

    def begin(self) -> None:
        self.runs += 1
        self.out = self.place / f"killed-{self.runs}"

    def finish(self, out: Path) -> int:
        """Train to the end; the exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(fork(lambda: self.train(out), self.log), 0)[1])

    def train(self, out: Path) -> None:
        train(self.run, out, resume=True, quiet=True)

    def with_marks(self, save: int) -> Callable[[], None]:
        """The training, with its so-manieth save marked."""

        def act() -> None:
            saves, plain_save = 0, checkpoint.save

            def marked(*arguments: object) -> Path:
                nonlocal saves
                saves += 1
                if saves != save:
                    return plain_save(*arguments)  # type: ignore[arg-type]
                mark()
                path = plain_save(*arguments)  # type: ignore[arg-type]
                mark()
                return path

            checkpoint.save = marked  # type: ignore[assignment]
            self.train(self.out)

        return act

    # ---- kills

    def kill(self, part_of_save: float | None) -> None:
        """One SIGKILL: at a part of a save in [0, 1), or at a random moment; a run that has ended is compared."""
        while True:
            if part_of_save is None:
                code = self.kill_at_random()
            else:
                code = trace(
                    self.with_marks(self.rng.randint(1, 3)), self.log, 1 + int(part_of_save * self.calls)
                ).code
            if code == KILL:
                break
            self.compare(code)
            self.begin()
        self.tally.kills += 1
        self.tally.in_save += part_of_save is not None
        self.inspect()

    def kill_at_random(self) -> int:
        process = fork(lambda: self.train(self.out), self.log)
        time.sleep(self.rng.uniform(0.0, 0.4) * self.seconds)
        os.kill(process, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def inspect(self) -> None:
        """After a kill: the newest checkpoint loads, and little is lost."""
        logged = max((line["seen"] for line in read_log(self.out) if "step" in line), default=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a damaged file would be a warning
            try:
                resumed = checkpoint.resume(self.out)
                if resumed and (self.out / checkpoint.MODEL).exists():
                    checkpoint.load(self.out)
            except (LimnerError, UserWarning) as error:
                self.tally.faults.append(str(error))
                return
        if not resumed and logged:
            self.tally.faults.append(f"{logged} images were trained on and there is no checkpoint")
            return
        lost = (logged - (resumed.state["seen"] if resumed else 0)) // self.batch
        self.tally.loadable += 1
        self.tally.lost = max(self.tally.lost, lost)
        if lost > STEPS_A_SAVE:
            self.tally.faults.append(f"{lost} steps were lost")

    def compare(self, code: int) -> None:
        """A run that ended: bit for bit as the unbroken one."""
        got = checkpoint.resume(self.out) if code == 0 else None
        same = got is not None and self.expected is not None and _equal(got, self.expected)
        self.tally.ends += same
        if not same:
            self.tally.faults.append(f"an end differs, exit code {code}: {self.log.read_text()[-300:]}")
        shutil.rmtree(self.out)

    def end(self) -> None:
        """Resume the last run to its end."""
        self.compare(self.finish(self.out))

    # ---- failing calls

    def fail_every_call(self, most: int) -> None:
        """Let the calls of a save that change files fail in turn, ``most`` of them spread evenly."""
        out = self.place / "failing"
        shutil.copytree(self.place / "unbroken", out)
        before = checkpoint.resume(out)
        assert before
        total = trace(lambda: self.save_again(out, before), self.log, fail_at=10**9).calls
        for at in sorted({1 + i * total // min(most, total) for i in range(min(most, total))}):
            shutil.rmtree(out)
            shutil.copytree(self.place / "unbroken", out)
            error = (errno.ENOSPC, errno.EIO)[at % 2]
            ended = trace(lambda: self.save_again(out, before), self.log, fail_at=at, error=error)
            self.tally.failed_calls += 1
            fault = self.fault_after(out, ended.code, ended.said)
            if fault:
                self.tally.faults.append(f"call {at} ({ended.failed}) failed: {fault}")
            else:
                self.tally.intact += 1

    def save_again(self, out: Path, state: checkpoint.Resumed) -> None:
        """Save the same state, as of a step later."""
        header = state.header | {"seen": state.header["seen"] + self.batch}
        mark()
        try:
            checkpoint.save(out, state.model_tensors, header, state.live_tensors, state.state)
        except LimnerError as error:
            sys.exit(str(error))
        finally:
            mark()

    def fault_after(self, out: Path, code: int, said: str) -> str:
        """What is wrong after a call of a save failed; empty if nothing is."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                if not checkpoint.resume(out):
                    return "no checkpoint"
                checkpoint.load(out)
            except (LimnerError, UserWarning) as error:
                return str(error)
        if not code and self.expected:  # what cannot be removed is removed after the next saves
            for step in (2, 3):
                header = self.expected.header | {"seen": self.expected.header["seen"] + step * self.batch}
                checkpoint.save(out, self.expected.model_tensors, header, self.expected.live_tensors, {})
        if left := [path.name for path in out.rglob(".*.tmp")] + [path.name for path in out.rglob(".tmp-*")]:
            return f"{left[0]} is left"
        if code and not ("bytes" in said and "Could not save" in said):
            return f"it says {said[-300:]!r}"
        return ""


def _equal(one: checkpoint.Resumed, other: checkpoint.Resumed) -> bool:
    ours, theirs = (resumed.model_tensors | resumed.live_tensors for resumed in (one, other))
    return (
        one.state["seen"] == other.state["seen"]
        and ours.keys() == theirs.keys()
        and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", default=",".join(FAMILIES), help="names, separated by commas")
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs over all families")
    parser.add_argument("--in-save", type=int, default=20, help="how many of them inside a save")
    parser.add_argument("--failing", type=int, default=1000, help="failing calls of a save, a family")
    parser.add_argument("--source", default="digits", help="images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/kills.json")
    args = parser.parse_args(argv)
    if not can_trace():
        raise LimnerError("Kills inside a save need ptrace of Linux.")
    torch.set_num_threads(1)  # a fork has one thread
    rng, names = random.Random(args.seed), args.families.split(",")
    open_data(args.source, size=(16, 16))  # packed before the first kill
    # Each family takes its share of the kills, and the calls that are hit go from the first to the last.
    in_save = {round(i * args.kills / max(args.in_save, 1)) for i in range(args.in_save)}
    parts = iter(sorted((i + 0.5) / max(args.in_save, 1) for i in range(args.in_save)))
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for at, name in enumerate(names):
            trial = Trial(name, args.source, Path(place), rng)
            for i in range(args.kills * at // len(names), args.kills * (at + 1) // len(names)):
                trial.kill(next(parts) if i in in_save else None)
            trial.end()
            if can_fail():
                trial.fail_every_call(args.failing)
            tally = trial.tally
            for fault in tally.faults:
                print(f"{name}: {fault}", file=sys.stderr)
            rows.append(
                {c: getattr(tally, c) for c in COLUMNS if c != "interval"} | {"interval": STEPS_A_SAVE}
            )
            print("  ".join(f"{COLUMNS[c]}: {rows[-1][c]}" for c in COLUMNS), flush=True)
            shutil.rmtree(trial.place)
            if tally.faults:
                return 1
    if args.record:
        total = {
            c: sum(row[c] for row in rows)
            for c in ("kills", "in_save", "loadable", "ends", "failed_calls", "intact")
        }
        worst = {"lost": max(row["lost"] for row in rows), "interval": STEPS_A_SAVE}
        record("kills", COLUMNS, [*rows, {"family": "all", **total, **worst}], threads=1)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LimnerError as error:
        sys.exit(f"kills: {error}")
