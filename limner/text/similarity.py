"""Similarity of texts without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def trigram_similarity(texts: Sequence[str]) -> Tensor:
    """N texts -> similarities [N, N] from 0 to 1: cosines of their counts of character trigrams, without case."""
    counts = [
        Counter(text[i : i + 3] for i in range(len(text) - 2)) for text in (f"  {t.lower()} " for t in texts)
    ]
    # In order of first use: the order of a set, and so the rounding of a sum, differs between processes.
    column = {trigram: i for i, trigram in enumerate(dict.fromkeys(t for count in counts for t in count))}
    table = torch.zeros(len(counts), len(column))
    for row, count in zip(table, counts, strict=True):
        row[[column[trigram] for trigram in count]] = torch.tensor([float(n) for n in count.values()])
    table = F.normalize(table, dim=1)
    return (table @ table.T).clamp(max=1)
