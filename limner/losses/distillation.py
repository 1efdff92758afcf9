"""Self-distillation: a student predicts its teacher's prototype probabilities for other views of an image."""

import torch
import torch.nn.functional as F
from torch import Tensor


def centre_and_sharpen(scores: Tensor, centre: Tensor, temperature: float = 0.04) -> Tensor:
    """Scores [..., K] minus their moving ``centre`` [K] -> probabilities (Caron 2021, algorithm 1)."""
    return F.softmax((scores - centre) / temperature, dim=-1)


def sinkhorn(scores: Tensor, temperature: float = 0.04, rounds: int = 3) -> Tensor:
    """Scores [batch..., K] -> probabilities that use each of K prototypes equally often (Caron 2020, eq. 3)."""
    log = (scores / temperature).flatten(0, -2)  # [N, K]
    for _ in range(rounds):
        log = log - log.logsumexp(0, keepdim=True)
        log = log - log.logsumexp(1, keepdim=True)
    return log.exp().view_as(scores)


def self_distillation(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of student and teacher, the mean over pairs of different views (Caron 2021, eq. 2).

    ``student`` [V, B, K]: scores of all views, the teacher's first. ``teacher`` [G, B, K]: probabilities of its views.
    """
    log_student = F.log_softmax(student / temperature, dim=-1)  # [V, B, K]
    pairs = -torch.einsum("gbk,vbk->gv", teacher, log_student) / student.shape[1]  # [G, V]
    same = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same, 0.0).sum() / (~same).sum()
