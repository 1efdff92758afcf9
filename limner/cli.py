"""Finds the command, runs it and ends the process. Nothing here or in `commands` knows a family by name."""

from __future__ import annotations

import importlib
import keyword
import os
import sys
import warnings
from collections.abc import Sequence

from limner.commands import INTERRUPTED, MISTAKE
from limner.settings import BUILT_IN, LimnerError, nearest

HELP = f"""\
usage: limner COMMAND ...

Train, sample, measure and serve image generators of every family on your own images.

  limner demo                            train a text-to-image model here in minutes, and score it
  limner data check SOURCE...            what is in a source, what is wrong with it, and how to fix it
  limner data show SOURCE --to PNG       a sheet of its images with labels or captions
  limner train FAMILY SOURCE... --out RUN   train a family on images
  limner sample RUN                      draw new images from a run
  limner explore RUN --to DIR            sheets of its latent space: interpolations, directions, a loop
  limner project RUN PICTURE --to PNG    the point in its latent space whose image is nearest to a picture
  limner synthesize RUN --to DIR         a labelled or captioned folder of new images, to train on
  limner evaluate RUN|DIR SOURCE...      how good a run's or a folder's images are, and whether they are copies
  limner embed RUN SOURCE... --to FILE   the features of every image, as npz, safetensors or parquet
  limner classify RUN SOURCE...          the class of every image, and the accuracy
  limner search RUN SOURCE PICTURE       the images of a source that resemble a picture most
  limner compare SOURCE... --families A,B   train several families alike; one report of which suits you
  limner export RUN --to diffusers       write a run in another library's format
  limner import DIR --out RUN            make a run of a folder that diffusers wrote
  limner show RUN                        what a run is: family, settings, data, parents
  limner families [FAMILY]               the families there are; one family's settings and size

`limner COMMAND --help` shows the options. A SOURCE is a folder of images, a zip, a tar, a parquet file,
hf:owner/name, or one of the built-in sets {", ".join(BUILT_IN)}."""

COMMANDS = (
    "demo", "data", "train", "sample", "explore", "project", "synthesize", "evaluate", "embed", "classify",
    "search", "compare", "export", "import", "show", "families",
)  # fmt: skip


def run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if argv else MISTAKE
    if argv[0] in ("-V", "--version"):
        from limner.version import __version__

        print(f"limner {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise LimnerError(f"There is no command {argv[0]!r}.{nearest(argv[0], COMMANDS)} See limner --help.")
    module = argv[0] + "_" * keyword.iskeyword(argv[0])
    return importlib.import_module(f"limner.commands.{module}").run(argv[1:])


def main() -> None:
    """The entry point: a mistake that the person can fix is one sentence and exit code 2, never a traceback."""
    warnings.showwarning = lambda message, *_, **__: print(f"limner: {message}", file=sys.stderr)
    try:
        code = run(sys.argv[1:])
    except LimnerError as mistake:
        print(f"limner: {mistake}", file=sys.stderr)
        code = MISTAKE
    except KeyboardInterrupt:
        print("limner: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # a disk, a name or a permission that only the person can fix
        print(f"limner: {error.filename or 'A file'}: {error.strerror or error}", file=sys.stderr)
        code = MISTAKE
    sys.exit(code)


if __name__ == "__main__":
    main()
