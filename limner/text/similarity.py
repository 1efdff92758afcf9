"""How similar texts are, without a model."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def trigram_similarity(texts: Sequence[str]) -> Tensor:
    """How alike N texts are, [N, N] from 0 to 1: the cosine of how often each has which three letters in a row."""
    padded = [f"  {text.lower()} " for text in texts]
    rows = [[text[i : i + 3] for i in range(len(text) - 2)] for text in padded]
    place = {three: i for i, three in enumerate(dict.fromkeys(three for row in rows for three in row))}
    found = [
        torch.bincount(torch.tensor([place[three] for three in row]), minlength=len(place)) for row in rows
    ]
    table = F.normalize(torch.stack(found).float(), dim=1)
    return (table @ table.T).clamp(max=1)
