"""What a training reports: the progress bar, log.jsonl, sample sheets, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from torch import Tensor

from limner import files
from limner.config import Run
from limner.core import Model
from limner.pictures.grid import save_picture
from limner.progress import EVERY, rich_progress
from limner.settings import LimnerError, need

COUNTS = ("codes_used", "perplexity")  # terms that count codes: no loss, and on a scale of their own

LINE = b'{"seen": '  # what every line of a log begins with


class Journal:
    """The record of one run in its folder (``out``; None: no record) and on the terminal."""

    def __init__(self, out: Path | None, quiet: bool = False, tensorboard: bool = False):
        self.out = out
        self.console = Console(stderr=True, quiet=quiet)
        self.log_every = 10
        # Since the last line. They stay on the device until the next is due, so that no GPU waits.
        self._terms: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._since = (0, 0.0)  # images, seconds at the last line
        self.noun = "image"  # what they are: see ImageSpec
        self._log = out / "log.jsonl" if out else None
        self._write_failed = False  # the warning is given once
        self._printed = time.monotonic()
        self._threads_said = False
        self._bar = rich_progress(self.console, quiet or not self.console.is_terminal, "rate", "loss")
        self._task = self._bar.add_task("training", total=1.0, rate="", loss="")
        self._board: Any = None
        if out and tensorboard:
            board = need("torch.utils.tensorboard", "TensorBoard is not installed", "log")
            with files.writing(out / "tensorboard"):
                self._board = board.SummaryWriter(str(out / "tensorboard"))

    def __enter__(self) -> Journal:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._board:
            with contextlib.suppress(OSError):
                self._board.close()

    def _warn_unwritable(self, error: Exception) -> None:
        """A log that cannot be written, as on a full disk, must not end the training; a folder that is gone does."""
        if not self._write_failed and self.out and self.out.exists():
            reason = getattr(error.__cause__ or error, "strerror", None) or error
            self.warn(
                f"{self.out} cannot be written to ({reason}): training continues without some of its log and sample "
                "sheets, but free space before the next checkpoint."
            )
        self._write_failed = True

    def announce(self, model: Model, images: int, run: Run, places: str, cost: tuple[float, int]) -> None:
        """Print what is trained on how many images and where, and its ``cost`` (seconds a step, bytes)."""
        self.log_every = run.training.log_every
        seconds, memory = cost
        spec, count = model.spec, sum(p.numel() for p in model.parameters())
        self.noun = spec.noun
        self.console.print(
            f"[bold]{run.family}[/] ({run.preset}, {count:,} parameters) on {images:,} {spec.noun}s of "
            f"{spec.size_in_words}, {places}, for {run.budget}\n"
            f"about {run.training.batch / seconds:,.0f} {spec.noun}s/s, {seconds:.2f} s a step of "
            f"{run.training.batch} {spec.noun}s, {memory / 1e6:,.1f} MB for weights and activations",
            soft_wrap=True,
        )

    def step(self, seen: int, step: int, seconds: float, terms: dict[str, Tensor]) -> None:
        """Add a step's terms; write a line every ``log_every`` steps."""
        if self.out is None:
            return
        for name, value in terms.items():
            self._terms[name].append(value)
        if step % self.log_every:
            return
        means = {name: float(sum(values)) / len(values) for name, values in self._terms.items()}
        images, before = self._since
        rate = (seen - images) / (seconds - before) if seconds > before else 0.0
        self._since = (seen, seconds)
        self._terms.clear()
        shown = round(rate, 1) if before else None
        self.write({"seen": seen, "step": step, "seconds": round(seconds, 3), "rate": shown} | means)
        losses = [v for name, v in means.items() if not name.endswith(("/gradient", *COUNTS))]
        speed, loss = f"{rate:,.0f} {self.noun}s/s", "loss " + " ".join(f"{v:.3f}" for v in losses[:4])
        self._bar.update(self._task, rate=speed, loss=loss)
        if not self.console.is_terminal and time.monotonic() - self._printed > EVERY:
            self._printed = time.monotonic()
            self.console.print(f"{seen:,} {self.noun}s  {seconds:.0f} s  {speed}  {loss}")

    def progress(self, spent: float) -> None:
        """Show the share of the budget that is spent."""
        self._bar.update(self._task, completed=min(spent, 1.0))

    def held_out(self, seen: int, seconds: float, losses: dict[str, float]) -> None:
        named = {f"held_out/{name}": value for name, value in losses.items()}
        self.write({"seen": seen, "seconds": round(seconds, 3)} | named)

    def picture(self, seen: int, sheet: Image.Image | None) -> None:
        if sheet is None or self.out is None:
            return
        name = f"samples/{seen:012d}.png"
        try:
            (self.out / "samples").mkdir(exist_ok=True)
            save_picture(sheet, self.out / name)
        except (OSError, LimnerError) as error:
            self._warn_unwritable(error)
        else:
            self.write({"seen": seen, "picture": name})

    def threads(self, seen: int, count: int) -> None:
        """Note a change of the number of threads; the first one is printed."""
        self.write({"seen": seen, "threads": count})
        if not self._threads_said:
            self._threads_said = True
            more = "s" * (count > 1)
            self.console.print(
                f"Other work keeps the processors busy: on with {count} thread{more}, and more when it ends."
            )

    def skipped(self, seen: int, reason: str) -> None:
        self.write({"seen": seen, "skipped": reason})
        self.warn(f"Skipped an update of the {reason[:300]}")

    def remark(self, seen: int, sentence: str) -> None:
        """Note and print what a person should know of how training went."""
        self.write({"seen": seen, "remark": sentence})
        self.warn(sentence)

    def warn(self, text: str) -> None:
        self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def write(self, line: dict[str, Any]) -> None:
        if self._log:
            try:
                with open(self._log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                self._log = None  # lines after an incomplete one could not be read
                self._warn_unwritable(error)
        if self._board:
            try:
                for name, value in line.items():
                    if isinstance(value, float):
                        self._board.add_scalar(name, value, line["seen"])
            except OSError as error:
                self._board = None
                self._warn_unwritable(error)

    def rewind(self, seen: int) -> None:
        """Drop the lines after ``seen`` and all remarks, as if the run were unbroken; those of skipped images stay.

        A damaged log is set aside, and its lines that can be read begin a new one.
        """
        self._terms.clear()
        if not self.out or not self._log:
            return
        lines, damaged = _read(self._log)
        # Remarks are of an end that is none any more.
        kept = [x for x in lines if (x["seen"] <= seen or "skipped" in x) and "remark" not in x]
        try:
            if damaged:
                aside = files.set_aside(self._log)
                self.warn(f"{self._log} is damaged: it was set aside as {aside}, and a new one begins.")
            files.write_text(self._log, "".join(json.dumps(line) + "\n" for line in kept))
        except (OSError, LimnerError) as error:
            self._log = None
            self._warn_unwritable(error)
        self._since = next(((x["seen"], x["seconds"]) for x in reversed(kept) if "step" in x), (0, 0.0))


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl, if there is one; lines that cannot be read are left out."""
    return _read(run / "log.jsonl")[0]


def _read(log: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines that can be read, and whether others than an unfinished last one cannot."""
    try:
        texts = log.read_bytes().split(b"\n")
    except OSError:
        return [], log.is_dir()
    lines, damaged = [], False
    for i, text in enumerate(texts):
        try:
            lines.append(_check_line(files.parse_json(text, log)))
        except files.Damaged:
            damaged |= i < len(texts) - 1 or not _is_cut(text)
    return lines, damaged


def _is_cut(text: bytes) -> bool:
    """Whether a last line may be what a kill left of one that the journal was writing."""
    return text[: len(LINE)] == LINE[: len(text)] and not text.endswith(b"}")


def _check_line(line: dict[str, Any]) -> dict[str, Any]:
    """A line as the journal writes them. Raises Damaged for any other."""
    timed = "step" in line or any("held_out/" in name for name in line)
    needed = ["seen", *(["seconds"] if timed else [])]
    texts = [name for name in ("picture", "skipped", "remark") if name in line]
    if not all(_is_number(line.get(name)) for name in needed) or not all(
        isinstance(value, str) if name in texts else value is None or _is_number(value)
        for name, value in line.items()
    ):
        raise files.Damaged(f"{line} is not a line of a log.")
    return line


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
