"""Sentences on what a training follows of its data, and on what of the data it leaves."""

from __future__ import annotations

from collections.abc import Sequence

from limner.core import Model
from limner.data import Data
from limner.data.items import NOTHING, to_follow
from limner.settings import join_words
from limner.text.encoder import encoder_of, length_flag, short, unread


def follows(model: Model, data: Data) -> list[str]:
    """What the model follows; and how many captions are longer than it reads, if any are."""
    captions = [text for text in data.captions or () if text]
    has = {
        "text": to_follow(len(data), len(captions)),
        "label": to_follow(len(data), 0, len(data.spec.classes)),
        "given": "given pictures" if data.given is not None else "",
    }
    used = [what for field, what in has.items() if what and field in model.follows]
    left = [what for field, what in has.items() if what and field not in model.follows]
    if used:
        ignored = f"; it ignores {join_words(left, 'and')}" if left else ""
        return [f"follows: {'; '.join(used)}{ignored}", *_cut(model, captions)]
    why = f"{model.family} ignores {join_words(left, 'and')}" if left else NOTHING
    return [f"follows nothing: {why}"]


def _cut(model: Model, captions: Sequence[str]) -> list[str]:
    """How many captions are longer than the model reads, if it reads captions and any are."""
    encoder = encoder_of(model) if "text" in model.follows else None
    lost = [end for text in captions if (end := unread(encoder, text))] if encoder else []
    if not encoder or not lost:
        return []
    which = "1 caption is" if len(lost) == 1 else f"{len(lost):,} of {len(captions):,} captions are"
    flag = length_flag(model.config)
    return [
        f"{which} longer than the {encoder.limit} that are read; what follows is ignored, such as "
        f"{short(lost[0])!r}{f': raise {flag}' if flag else ''}."
    ]
