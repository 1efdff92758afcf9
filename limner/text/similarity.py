"""How similar texts are, without a model."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def trigram_similarity(texts: Sequence[str]) -> Tensor:
    """How alike N texts are, [N, N] from 0 to 1: the cosine of how often each has which three letters in a row."""
    found = [
        Counter(text[i : i + 3] for i in range(len(text) - 2)) for text in (f"  {t.lower()} " for t in texts)
    ]
    place = {three: i for i, three in enumerate(dict.fromkeys(three for counts in found for three in counts))}
    table = torch.zeros(len(found), len(place))
    for row, counts in zip(table, found, strict=True):
        row[[place[three] for three in counts]] = torch.tensor([float(n) for n in counts.values()])
    table = F.normalize(table, dim=1)
    return (table @ table.T).clamp(max=1)
