"""Sentences on what a training follows of its data, and on what of the data it leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from limner.core import LimnerError, Model, Tokenises
from limner.data import Data
from limner.data.items import NOTHING, to_follow
from limner.settings import join_words
from limner.text.encoder import encoder_of, length_flag, short, unread
from limner.text.vocabulary import Vocabulary

SIDES = re.compile(r"\b(?:left|right)(?:most|wards?)?\b|[左右]", re.IGNORECASE)


_DEGRADED = "pictures that it makes of its images"


def follows(model: Model, data: Data) -> list[str]:
    """What the model follows; and how many captions are longer than it reads, if any are."""
    captions = [text for text in data.captions or () if text]
    has = {
        "text": to_follow(len(data), len(captions), noun=data.spec.noun),
        "label": to_follow(len(data), 0, len(data.spec.classes)),
        "given": "given pictures"
        if data.given is not None
        else _DEGRADED
        if "given" in model.follows
        else "",
    }
    used = [what for field, what in has.items() if what and field in model.follows]
    left = [what for field, what in has.items() if what and field not in model.follows]
    if used:
        ignored = f"; it ignores {join_words(left, 'and')}" if left else ""
        return [f"follows: {'; '.join(used)}{ignored}", *_cut(model, captions)]
    why = f"{model.family} ignores {join_words(left, 'and')}" if left else NOTHING
    return [f"follows nothing: {why}"]


def refuse_collapsed(model: Model, data: Data, looked_at: int = 64) -> None:
    """Raises LimnerError if a tokenizer that the model builds on has one code for all places of all images."""
    for field, parent in model.parents.items():
        network = model.get_submodule(parent.weights) if parent.weights in model.frozen else None
        if not isinstance(network, Tokenises) or parent.size:  # which takes images of another size
            continue
        rows = data.order(0, min(looked_at, len(data)), 0)
        if len(_codes_used(network, data, rows, model.device)) == 1:
            raise LimnerError(
                f"{model.family} cannot learn from its tokenizer, which has collapsed: it gives all places of "
                f"{len(rows)} images the same one of its {network.codes:,} codes; train another for longer, and name "
                f"it with --model.{field}."
            )


def _codes_used(network: Tokenises, data: Data, rows: np.ndarray, device: torch.device) -> set[int]:
    """The codes of rows of ``data``, until there are two; one image at a time, since a large one takes gigabytes."""
    used: set[int] = set()
    for i in range(len(rows)):
        with torch.inference_mode():
            used |= set(network.tokenise(data.batch(rows[i : i + 1]).image.to(device)).unique().tolist())
        if len(used) > 1:
            break
    return used


def _cut(model: Model, captions: Sequence[str]) -> list[str]:
    """How many captions are longer than the model reads, if it reads captions and any are."""
    encoder = encoder_of(model, captions) if "text" in model.follows else None
    lost = [end for text in captions if (end := unread(encoder, text))] if encoder else []
    if not encoder or not lost:
        return []
    which = "1 caption is" if len(lost) == 1 else f"{len(lost):,} of {len(captions):,} captions are"
    trimmed = (
        isinstance(encoder, Vocabulary) and encoder.length < encoder.config.length
    )  # by captions, not by a setting
    flag = "" if trimmed else length_flag(model.config)
    return [
        f"{which} longer than the {encoder.limit} that are read; what follows is ignored, such as "
        f"{short(lost[0])!r}{f': raise {flag}' if flag else ''}."
    ]


def notes_on_captions(model: Model, data: Data, flip: bool) -> Iterator[str]:
    """Sentences on captions that teach less than they seem to, if the model follows captions; ``flip``: --data.flip."""
    if "text" not in model.follows or data.captions is None:
        return
    captions = [text for text in data.captions if text]
    if missing := len(data) - len(captions):
        noun = data.spec.noun
        have = f"1 {noun} has" if missing == 1 else f"{missing:,} of {len(data):,} {noun}s have"
        yield f"{have} no caption: trained on as if without a prompt."
    if len(captions) > 1 and len(set(captions)) == 1:
        yield (
            f"All {len(captions):,} captions are alike, {short(captions[0])!r}, so prompts will change nothing: "
            "describe what differs between the images."
        )
    sided = [text for text in captions if SIDES.search(text)] if flip else []
    if sided:
        say = "1 caption says" if len(sided) == 1 else f"{len(sided):,} of {len(captions):,} captions say"
        yield (
            f"{say} left or right, such as {short(sided[0])!r}, and mirrored images contradict that: leave --data.flip "
            "out."
        )
    vocabularies = [module for module in model.modules() if isinstance(module, Vocabulary)]
    if any(vocabulary.lacks_package and not vocabulary.learnt for vocabulary in vocabularies):
        yield (
            "Texts are read as bytes, since the package tokenizers, which learns longer pieces from the captions, is "
            "not installed: pip install 'limner[text]'."
        )
