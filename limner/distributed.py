"""The processes of one training or measuring: who I am, and the few things that all of them must agree on.

Gradients are averaged by hand after the backward pass, in one flat buffer for each type. DDP would hook
into ``forward`` of one wrapped module, but here a turn is a closure over several modules.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from limner.settings import LimnerError

MEET = "LIMNER_MEET"  # tells a helper process where to meet, and which it is


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world: int = 1
    own: bool = False  # started here, so that they share this machine's cores

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

    def same_(self, tensors: Iterable[Tensor]) -> None:
        """Everybody takes the first process's values."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, seconds: float, stop: int) -> tuple[float, int]:
        """The first process's clock, and the strongest wish to stop (a signal's number, or 0)."""
        if self.world == 1:
            return seconds, stop
        told = torch.tensor([seconds if self.first else 0.0, float(stop)], dtype=torch.float64)
        told = told.to(_place())
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return float(told[0]), int(told[1])

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes before the others, which then find its work done: data packed in the cache."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def part(self, n: int) -> slice:
        """This process's share of ``n`` things, in order; all of them where they are fewer than the processes."""
        if n < self.world:
            return slice(0, n)
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def gather(self, found: Tensor, n: int) -> Tensor:
        """[n, ...] on every process, from what each found for its ``part(n)``."""
        if self.world == 1 or n < self.world:
            return found
        counts = [n * (rank + 1) // self.world - n * rank // self.world for rank in range(self.world)]
        sent = found.new_zeros(max(counts), *found.shape[1:], device=_place())  # all must be of one size
        sent[: len(found)] = found
        parts = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(parts, sent)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(found.device)

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


def _place() -> str:
    """Where tensors must be for the processes to send them."""
    return f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"


ALONE = Ranks()


@contextmanager
def join(device: torch.device, processes: int, command: Sequence[str]) -> Iterator[Ranks]:
    """Join the processes that torchrun started; or start ``processes`` in all here; or be the only one.

    A small network keeps one core busy but not two: on a CPU, two processes of one thread each train a
    third more images a second than one of two threads. ``command`` starts a process that joins this one.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        with _group(device, {}):
            yield Ranks(dist.get_rank(), world)
    elif processes > 1:
        with tempfile.TemporaryDirectory() as folder, _few_threads(processes):
            meet = {"init_method": f"file://{folder}/meet", "rank": 0, "world_size": processes}
            with _helpers(processes, folder, command), _group(device, meet):
                yield Ranks(0, processes, own=True)
    elif MEET in os.environ:  # started by the lines above, in another process
        folder, rank, world = json.loads(os.environ[MEET])
        meet = {"init_method": f"file://{folder}/meet", "rank": rank, "world_size": world}
        with _few_threads(world, forever=True), _group(device, meet):
            yield Ranks(rank, world)
    else:
        yield Ranks()


@contextmanager
def _group(device: torch.device, meet: dict[str, Any]) -> Iterator[None]:
    # its functions keep the group of the moment of their import as a default argument: imported later (by an
    # optimiser, say), they would keep it alive to the interpreter's end, which gloo's threads may abort
    import torch.distributed.nn.functional  # noqa: F401

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **meet)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _few_threads(processes: int, forever: bool = False) -> Iterator[None]:
    """This process's share of the cores."""
    before = len(os.sched_getaffinity(0)) if forever else torch.get_num_threads()
    torch.set_num_threads(max(1, before // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def all_threads(ranks: Ranks) -> Iterator[None]:
    """While the other processes here wait for this one, their cores are free."""
    before = torch.get_num_threads()
    torch.set_num_threads(before * (ranks.world if ranks.own else 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _helpers(processes: int, folder: str, command: Sequence[str]) -> Iterator[None]:
    """The other processes; none of them outlives this one's part."""
    started = []
    with open(errors := Path(folder) / "errors", "w") as said:
        for rank in range(1, processes):
            told = {**os.environ, MEET: json.dumps([folder, rank, processes])}
            started.append(subprocess.Popen(command, env=told, stdout=subprocess.DEVNULL, stderr=said))
    try:
        yield
    except RuntimeError as error:  # what gloo raises when a peer is gone
        if all(helper.poll() is None for helper in started):
            raise
        why = errors.read_text()[-500:].strip() or error
        raise LimnerError(f"A helper process ended: {why}") from error
    finally:
        for helper in started:
            try:
                helper.wait(timeout=5 if sys.exc_info()[0] is None else 0)
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()


def useful_processes(wanted: int, device: torch.device, batch: int, accumulate: int) -> int:
    """How many processes to start here: ``wanted``, or for 0 one a core, while each gets 16 images or more."""
    if device.type != "cpu" or MEET in os.environ:
        return 1
    if wanted:
        return wanted
    most = torch.get_num_threads()
    fits = [
        n for n in range(1, most + 1) if batch % (n * accumulate) == 0 and batch // (n * accumulate) >= 16
    ]
    return max(fits, default=1)


def share(batch: int, accumulate: int, ranks: Ranks) -> int:
    """Images in one microbatch of one process; the batch must divide evenly."""
    if batch < 1 or accumulate < 1:
        raise LimnerError(
            f"A batch of {batch} in {accumulate} microbatches holds nothing: both must be at least 1."
        )
    parts = ranks.world * accumulate
    if batch % parts:
        raise LimnerError(
            f"A batch of {batch} does not divide into {ranks.world} processes x {accumulate} microbatches: "
            f"set --training.batch to a multiple of {parts}."
        )
    return batch // parts
