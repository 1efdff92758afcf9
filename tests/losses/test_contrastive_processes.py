"""The contrastive loss of two processes is that of one with all their rows, and so are its gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from limner.distributed import Ranks, gather_rows, joined
from limner.losses.contrastive import symmetric_cross_entropy

GROUPS = torch.tensor([1, 2, 3, 1, 4, 5, 2, 6])  # of 4 pairs, and of one text of no image for each


def loss_and_gradients(rows: slice) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Of a linear map of images and of texts, of which these are the rows of the process."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(12, 5, generator=generator, dtype=torch.float64).split(4)
    weights = [torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    images = F.normalize(data[0][rows] @ weights[0], dim=1)
    texts = F.normalize(torch.cat([part[rows] for part in data[1:]]) @ weights[1], dim=1)
    groups = torch.cat([part[rows] for part in GROUPS.split(4)])
    loss = symmetric_cross_entropy(images, texts, scale, groups)
    return loss.detach(), list(torch.autograd.grad(loss, [*weights, scale]))


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    with joined(ranks):
        loss, gradients = loss_and_gradients(ranks.part(4))
    ranks.mean_(gradients)  # as the loop does
    alone = gather_rows(torch.ones(1))  # outside of a step
    torch.save([loss, *gradients, alone], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    mp.start_processes(work, (str(tmp_path),), nprocs=2, start_method="spawn")
    loss, gradients = loss_and_gradients(slice(0, 4))
    for rank in range(2):
        found: list[Any] = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found[:-1], [loss, *gradients])
        assert len(found[-1]) == 1
