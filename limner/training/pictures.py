"""Pictures that a model's settings name, which it learns before the first step of a new run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from limner.config import Run
from limner.core import LearnsPictures, Model
from limner.data import image_sizes, open_picture
from limner.settings import LimnerError

LEAST = 16  # pixels a side of a picture that something can be learnt from


def learn_pictures(model: Model, run: Run) -> None:
    """Read the pictures that the model's settings name. Raises LimnerError for one that cannot be used."""
    if not isinstance(model, LearnsPictures):
        return
    pictures = {}
    for file, spec in model.picture_files.items():
        if not Path(file).is_file():
            raise LimnerError(
                f"There is no picture {file}, which the settings of {run.family} name: name a file."
            )
        sizes = image_sizes(file, 1, run.data)
        if sizes and min(sizes[0]) < LEAST:
            raise LimnerError(
                f"{file} has {sizes[0][0]}x{sizes[0][1]} pixels, too few to learn from: name a picture of at least "
                f"{LEAST}x{LEAST}."
            )
        pictures[file] = open_picture(file, spec, replace(run.data, fit="crop"))
    model.learn_pictures(pictures)
