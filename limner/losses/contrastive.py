"""What self-supervised networks minimise: views of one image agree, those of others do not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sharpen(scores: Tensor, centre: Tensor, temperature: float = 0.04) -> Tensor:
    """What a teacher says, by its ``scores`` [..., K] less their moving ``centre`` [K] (Caron 2021, algorithm 1)."""
    return F.softmax((scores - centre) / temperature, dim=-1)


def balance(scores: Tensor, temperature: float = 0.04, rounds: int = 3) -> Tensor:
    """As ``sharpen``, but over the batch every prototype is meant as often (Caron 2020, eq. 3; Sinkhorn's rounds).

    ``scores`` [..., K]; all but the last axis together are the batch.
    """
    log = (scores / temperature).flatten(0, -2)  # [N, K]
    for _ in range(rounds):
        log = log - log.logsumexp(0, keepdim=True)
        log = log - log.logsumexp(1, keepdim=True)
    return log.exp().view_as(scores)


def self_distillation(student: Tensor, says: Tensor, temperature: float = 0.1) -> Tensor:
    """The student predicts what the teacher says of every other view (Caron 2021, eq. 2).

    ``student`` [V, B, K] scores of all views, of which the first G are those that the teacher saw; ``says``
    [G, B, K] are its probabilities. The mean over pairs of different views.
    """
    predicts = F.log_softmax(student / temperature, dim=-1)  # [V, B, K]
    pairs = -torch.einsum("gbk,vbk->gv", says, predicts) / student.shape[1]  # [G, V]
    same = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same, 0.0).sum() / (~same).sum()
