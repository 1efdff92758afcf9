"""What is said of prompts that a run does not follow as they stand."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from limner.core import Model
from limner.settings import join_words
from limner.text.encoder import encoder_of, short, unread
from limner.text.scripts import in_words, scripts_of


def warn_of_prompts(model: Model, prompts: Sequence[str], scripts: Sequence[str] | None = None) -> None:
    """Warn of prompts that are empty, too long, or in a script that no caption had.

    ``scripts`` are those of the captions that the run was trained on (``scripts_of``); None: not known.
    """
    if "text" not in model.follows:
        return
    if empty := sum(not prompt.strip() for prompt in prompts):
        which = (
            "The prompt is empty" if len(prompts) == 1 else f"{empty:,} of {len(prompts):,} prompts are empty"
        )
        warnings.warn(f"{which}, so images are drawn without one.", stacklevel=2)
    warn_if_cut(model, prompts)
    warn_of_scripts(prompts, scripts)


def warn_of_scripts(texts: Sequence[str], known: Sequence[str] | None) -> None:
    """Warn of the first text with letters of a script that is not ``known`` (``scripts_of``); None: all may be."""
    for text in texts if known is not None else ():
        if new := sorted(scripts_of([text]) - {*(known or ())}):
            trained, unknown = (join_words(list(map(in_words, some)), "and") for some in (known or (), new))
            warnings.warn(
                f"No caption of this run's training has {unknown}, as {short(text)!r} has, so it cannot read them: "
                f"write {f'in {trained}' if trained else 'without letters'}.",
                stacklevel=3,
            )
            return


def warn_if_cut(model: Model, texts: Sequence[str]) -> None:
    """Warn of what the model does not read of texts that are longer than it reads."""
    encoder = encoder_of(model, texts) if "text" in model.follows else None
    lost = list(filter(None, (unread(encoder, text) for text in texts))) if encoder else []
    if encoder and lost:
        which = "The prompt is" if len(texts) == 1 else f"{len(lost):,} of {len(texts):,} prompts are"
        end = f"the end{' of the first' if len(texts) > 1 else ''}, {short(lost[0])!r}, is ignored"
        warnings.warn(
            f"{which} longer than the {encoder.limit} that this run reads: {end}.",
            stacklevel=2,
        )
