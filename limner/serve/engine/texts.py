"""What conditions say, described alone and kept, so that nothing depends on what else is asked."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from limner.core import Condition, ConditionEmbedding, Model
from limner.serve.engine.rows import pad_tokens

KEPT = 128  # descriptions; one with 129 tokens of 128 channels takes 66 kB
SHORT = 32  # tokens, with that of the start
# Texts of as many tokens as an encoder reads: one a word, a character or a sign.
LONGEST_TEXTS = "a " * 4096, "a.1," * 2048, "!?" * 4096, "\u4e00" * 4096, "0 " * 4096


class Descriptions:
    """In place of a model's ``embed``: one row at a time, its tokens padded to one of two lengths for the run.

    Most texts are short, and padding them as far as the longest takes half as long again. A text of more tokens than
    any of `LONGEST_TEXTS` gets a multiple of the larger length.
    """

    def __init__(self, model: Model):
        self.embed: Any = type(model).embed.__get__(model)  # type: ignore[attr-defined]
        self.kept: OrderedDict[tuple[str | None, int | None], ConditionEmbedding] = OrderedDict()
        self.length = self.short = 1  # tokens
        if "text" in model.follows:
            rows = (self.embed(Condition(1, text=[text])) for text in LONGEST_TEXTS)
            self.length = max(1 if row.tokens is None else row.tokens.shape[1] for row in rows)
            self.short = SHORT if self.length >= 2 * SHORT else self.length

    def __call__(self, condition: Condition) -> ConditionEmbedding:
        """The rows of a condition. Of one image without a picture they are kept."""
        if condition.size != 1 or condition.image is not None or condition.blend is not None:
            return self.padded(self.embed(condition))
        key = (
            None if condition.text is None else condition.text[0],
            None if condition.label is None else int(condition.label),
        )
        rows = self.kept.pop(key, None)
        if rows is None:
            rows = self.padded(self.embed(condition))
        self.kept[key] = rows  # the last used stands last
        if len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return rows

    def padded(self, rows: ConditionEmbedding) -> ConditionEmbedding:
        short = rows.tokens is None or rows.tokens.shape[1] <= self.short
        return pad_tokens(rows, self.short if short else self.length)


def describe_alone(model: Model) -> Descriptions:
    """Make the model describe conditions so from now on."""
    made = Descriptions(model)
    model.embed = made  # type: ignore[assignment]
    return made
