"""Finds the command, runs it and ends the process. Nothing here or in `commands` knows a family by name."""

from __future__ import annotations

import importlib
import keyword
import os
import signal
import sys
import threading
import time
import warnings

from limner.commands import MISTAKE, guard_output, lost_output
from limner.settings import BUILT_IN, LimnerError, Stopped, lacks_memory, nearest, signal_of

HELP = f"""\
usage: limner COMMAND [ARGUMENTS]

Train, sample and measure image generators of every family on your own images.

  demo                              train a text-to-image model here; score it
  data check SOURCE...              what is in a source, and what to fix in it
  data show SOURCE... --to PNG      a sheet of its images, labels and captions
  train FAMILY SOURCE... --out RUN  train a family on images
  sample RUN                        draw new images
  apply RUN PICTURE|DIR --to PATH   enlarge, restore, translate, paint
  explore RUN --to DIR              draw sheets of the run's latent space
  project RUN PICTURE --to PNG      find the latent point of a picture
  synthesize RUN --to DIR           make a folder of new images to train on
  evaluate RUN|DIR SOURCE...        measure the quality of images, and copying
  embed RUN SOURCE... --to FILE     write the features of every image
  classify RUN SOURCE...            the class of every image; the accuracy
  search RUN SOURCE [PICTURE]       find the images most like a picture or text
  compare SOURCE... --families A,B  train several families; which one to take
  serve RUN...                      answer any OpenAI client, and draw
  export RUN --to diffusers         write a run in another library's format
  import DIR --out RUN              make a run from a folder of diffusers
  show RUN                          what a run is: family, settings, data
  families [FAMILY]                 list families; one's settings and size

limner COMMAND --help shows the options. A SOURCE is a folder of images, a zip,
a tar, a parquet file, hf:owner/name, or a built-in set:
{", ".join(BUILT_IN)}."""

COMMANDS = (
    "demo", "data", "train", "sample", "apply", "explore", "project", "synthesize", "evaluate", "embed",
    "classify", "search", "compare", "serve", "export", "import", "show", "families",
)  # fmt: skip


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if argv else MISTAKE
    if argv[0] in ("-V", "--version"):
        from limner.settings import __version__

        print(f"limner {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise LimnerError(f"There is no command {argv[0]!r}.{nearest(argv[0], COMMANDS)} See limner --help.")
    module = argv[0] + "_" * keyword.iskeyword(argv[0])
    return importlib.import_module(f"limner.commands.{module}").run(argv[1:]) or 0


def _stop_on_signals() -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: temporary files are removed, and its trainings end with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # nohup ignores SIGHUP
            signal.signal(number, Stopped.on_signal)


def _end_thread(failed: threading.ExceptHookArgs) -> None:
    """A library's thread that cannot write ends without a traceback; who waits for it gets the error."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


def main() -> None:
    """The entry point: a mistake that the person can fix is one sentence and exit code 2, never a traceback."""
    guard_output()
    if "WORLD_SIZE" in os.environ:  # torchrun's: its signal must end a process at once that waits for others
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what is lost is said in a sentence
    else:
        _stop_on_signals()
    warnings.showwarning = lambda message, *_, **__: print(f"limner: {message}", file=sys.stderr)
    threading.excepthook = _end_thread
    try:
        code = run(sys.argv[1:])
    except LimnerError as mistake:
        if mistake.speaks is None and int(os.environ.get("RANK", "0")):
            time.sleep(2)  # in which torchrun ends this process if the first one has failed too
        if mistake.speaks is not False:
            print(f"limner: {mistake}", file=sys.stderr)
        code = MISTAKE
    except KeyboardInterrupt as stop:
        code = 128 + signal_of(stop)
        print(f"limner: stopped by {signal.Signals(signal_of(stop)).name}", file=sys.stderr)
    except SystemExit as end:  # tyro's, after --help or a flag that is not valid
        code = end.code if isinstance(end.code, int) else 0
    except OSError as error:  # a disk, a name or a permission that only the person can fix
        from limner.files import explain

        print(f"limner: {explain(error, what='be read or written')}", file=sys.stderr)
        code = MISTAKE
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        print(
            "limner: There is not enough memory: choose smaller images (--size), fewer at a time (--batch; in a "
            "training --training.batch), or a smaller preset.",
            file=sys.stderr,
        )
        code = MISTAKE
    if reason := lost_output():
        print(f"limner: The result cannot be printed ({reason}): send it elsewhere.", file=sys.stderr)
        code = code or MISTAKE
    sys.exit(code)


if __name__ == "__main__":
    main()
