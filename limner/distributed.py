"""The processes of one training or evaluation, and what they exchange.

Gradients are averaged by hand after the backward pass, in one flat buffer for each type. DDP would hook
into ``forward`` of one wrapped module, but here a loss is a closure over several modules.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from limner.settings import LimnerError
from limner.watch import Watch

# A lost process ends a wait (watch.py), not the time: the first one may pack or draw for hours.
LONGEST_WAIT = timedelta(days=365)


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Average tensors over the processes, in place."""
        if self.world == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for group in by_type.values():
            flat = torch.cat([t.reshape(-1) for t in group])
            dist.all_reduce(flat)
            flat /= self.world
            for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, seconds: float, stop: int) -> tuple[float, int]:
        """The first process's clock, and the largest stop signal seen by any process (0: none)."""
        if self.world == 1:
            return seconds, stop
        own = [seconds if self.first else 0.0, float(stop)]
        values = torch.tensor(own, dtype=torch.float64, device=_device())
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return float(values[0]), int(values[1])

    def as_first(self, value: bool) -> bool:
        """The first process's value, on every process."""
        if self.world == 1:
            return value
        flag = torch.tensor([value], dtype=torch.uint8, device=_device())
        dist.broadcast(flag, 0)
        return bool(flag)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block on the first process and then on the others, which find its results, such as packed data."""
        if not self.first:
            dist.barrier()
        yield
        if self.first and self.world > 1:
            dist.barrier()

    def part(self, n: int) -> slice:
        """The rows of ``n`` that this process works on; all of them if there are fewer than processes."""
        if n < self.world:
            return slice(0, n)
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """[n, ...] on every process, from the ``rows`` of each one's ``part(n)``."""
        if self.world == 1 or n < self.world:
            return rows
        parts = [Ranks(rank, self.world).part(n) for rank in range(self.world)]
        counts = [part.stop - part.start for part in parts]
        padded = rows.new_zeros(
            max(counts), *rows.shape[1:], device=_device()
        )  # all_gather needs equal sizes
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)]).to(rows.device)


def _device() -> str:
    """The device of tensors that the backend can send."""
    return f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"


ALONE = Ranks()
_JOINED = ContextVar("joined", default=ALONE)


@contextmanager
def joined(ranks: Ranks) -> Iterator[None]:
    """Within the block, which all processes enter alike, ``gather_rows`` joins their rows."""
    token = _JOINED.set(ranks)
    try:
        yield
    finally:
        _JOINED.reset(token)


def gather_rows(rows: Tensor) -> Tensor:
    """[W B, ...] the rows [B, ...] of all W processes of a training, in order; ``rows`` itself outside its steps.

    For losses over the whole batch: each process computes the loss of all rows, the gradients of its own come from
    every process, and the mean of the weights' gradients over the processes is that of one process with all rows.
    """
    return rows if _JOINED.get().world == 1 else _GatherRows.apply(rows, _JOINED.get())


def own_rows(rows: Tensor) -> Tensor:
    """The rows [B, ...] of this process among those [W B, ...] that ``gather_rows`` joined."""
    ranks = _JOINED.get()
    return rows.chunk(ranks.world)[ranks.rank]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ranks.world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # the sum over the processes' losses
        return gradient.chunk(ctx.ranks.world)[ctx.ranks.rank], None


@contextmanager
def join(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or run alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, world = next(dist.rendezvous("env://"))
    attempt = dist.PrefixStore(f"limner {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    with _group(device, attempt, Ranks(rank, world)) as ranks:
        yield ranks


@contextmanager
def _group(device: torch.device, store: Any, ranks: Ranks) -> Iterator[Ranks]:
    """Meet the other processes in the store, and leave together. Raises LimnerError where one of them is gone."""
    # Its functions keep the group that exists at their import as a default argument. Imported later (by an
    # optimiser, say), they would keep it alive to the interpreter's exit, which gloo's threads may abort.
    import torch.distributed.nn.functional  # noqa: F401

    backend = "nccl" if device.type == "cuda" else "gloo"
    watch = Watch(store.clone(), ranks.rank, ranks.world)
    watch.start()
    try:
        dist.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=LONGEST_WAIT
        )
        yield ranks
        dist.barrier()  # or one that has finished would seem lost to the others
    except LimnerError as error:
        error.speaks = watch.speaks()
        raise
    except RuntimeError as error:
        if not watch.is_of_lost_process(error):
            raise
        lost = LimnerError(watch.reason())
        lost.speaks = watch.speaks()
        raise lost from error
    finally:
        watch.over.set()
        if dist.is_initialized():
            dist.destroy_process_group()


def microbatch_size(batch: int, accumulate: int, ranks: Ranks) -> int:
    """Images in one microbatch of one process. Raises LimnerError if the batch does not divide evenly."""
    parts = ranks.world * accumulate
    if batch % parts:
        raise LimnerError(
            f"A batch of {batch} does not divide into {ranks.world} processes x {accumulate} microbatches: "
            f"set --training.batch to a multiple of {parts}."
        )
    return batch // parts
