"""Captions that nearly fit: one word of another caption in the place of a caption's own (after Yuksekgonul 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from limner.text.words import words


def with_another_word(texts: Sequence[str]) -> list[str]:
    """Each text with one word replaced by that which stands in its place in another of them, of as many words.

    Which text and which word is drawn by torch's global generator. So captions of one form differ in one attribute:
    'a red circle above a blue square' becomes 'a red circle below a blue square'. A text stays as it is
    where no other has as many words.
    """
    spans = [[(start, end) for start, end, _ in words(text)] for text in texts]
    by_length: dict[int, list[int]] = {}
    for i, own in enumerate(spans):
        by_length.setdefault(len(own), []).append(i)
    changed = []
    for i, draws in enumerate(torch.rand(len(texts), 2).tolist()):
        partners = [j for j in by_length[len(spans[i])] if texts[j] != texts[i]] or [i]
        j = partners[int(draws[0] * len(partners))]
        pairs = list(zip(spans[i], spans[j], strict=True))
        differing = [(one, two) for one, two in pairs if texts[i][slice(*one)] != texts[j][slice(*two)]]
        if differing:
            (start, end), other = differing[int(draws[1] * len(differing))]
            changed.append(texts[i][:start] + texts[j][slice(*other)] + texts[i][end:])
        else:
            changed.append(texts[i])
    return changed
