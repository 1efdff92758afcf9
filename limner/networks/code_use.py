"""Which entries of a codebook are in use, and entries as moving averages of what they stand for.

What a step gathers waits in buffers that begin at 0, and `update` takes it in before the next step. The loop gives all
processes the mean of their buffers after each step, so each process adds its own part times the number of processes:
the mean is then the sum, and all update alike.
"""

import torch
from torch import Tensor, distributed, nn

from limner.networks.quantise import MovingCodebook

NEVER = 2.0**40  # images since its last use, of a code that has had none


def process() -> tuple[int, int]:
    """The number of this process, from 0, and that of all processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class CodeUse(nn.Module):
    """How often each of ``codes`` was used lately, over about ``window`` images."""

    images: Tensor  # [], that the step has seen
    uses: Tensor  # [codes], in these images
    recent: Tensor  # [codes], uses that fade with the images seen since
    idle: Tensor  # [codes], images since the last use

    def __init__(self, codes: int, window: int = 2_000):
        super().__init__()
        self.window = window
        self.register_buffer("images", torch.zeros(()))
        self.register_buffer("uses", torch.zeros(codes))
        self.register_buffer("recent", torch.zeros(codes))
        self.register_buffer("idle", torch.full((codes,), NEVER))

    @torch.no_grad()
    def count(self, index: Tensor) -> None:
        """[B, h, w], codes of some of the step's images."""
        _, world = process()
        self.images += world * len(index)
        self.uses += world * torch.bincount(index.flatten(), minlength=len(self.uses))

    @torch.no_grad()
    def update(self) -> None:
        """Take in what was counted since the last call."""
        keep = torch.exp(-self.images / self.window)
        self.recent.mul_(keep).add_(self.uses)
        self.idle.add_(self.images).masked_fill_(self.uses > 0, 0.0)
        self.uses.zero_()
        self.images.zero_()

    def in_use(self) -> Tensor:
        """[codes], whether the last ``window`` images used each, with those that are not taken in yet."""
        return (self.idle < self.window) | (self.uses > 0)

    def used(self) -> Tensor:
        """The number of codes that the last ``window`` images used."""
        return (self.idle < self.window).sum().float()


class MovingAverage(CodeUse):
    """Entries as averages of the vectors that they stand for (van den Oord 2017, A.1), dead ones restarted.

    A code that ``unused`` images have not used becomes a vector of the batch, drawn by the global generator. At first
    all do. 0: none ever does.
    """

    sums: Tensor  # [codes, width], of the vectors in the step's images
    spare: Tensor  # [codes, width], vectors for the codes that are to be restarted
    age: Tensor  # [codes], images since the last use or restart
    mean_count: Tensor  # [codes]
    mean_sum: Tensor  # [codes, width]

    def __init__(self, book: MovingCodebook, decay: float, unused: int, window: int = 2_000):
        super().__init__(book.codes, window)
        self.decay, self.unused = decay, unused
        self.register_buffer("sums", torch.zeros_like(book.entries))
        self.register_buffer("spare", torch.zeros_like(book.entries))
        self.register_buffer("age", torch.full((book.codes,), NEVER))
        self.register_buffer("mean_count", torch.ones(book.codes))
        self.register_buffer("mean_sum", book.entries.clone())

    @torch.no_grad()
    def gather(self, index: Tensor, x: Tensor) -> None:
        """Codes [B, h, w] and their vectors [B, width, h, w], of some of the step's images."""
        rank, world = process()
        flat = x.to(self.sums.dtype).movedim(1, -1).flatten(0, -2)  # [B h w, width]
        drawn = flat[torch.randint(len(flat), (len(self.spare),), device=flat.device)]
        first = (self.images == 0) & (rank == 0)  # the first images of the step, in the first process
        self.spare += world * first * drawn
        self.sums.index_add_(0, index.flatten(), world * flat)
        self.count(index)

    @torch.no_grad()
    def update_entries(self, book: MovingCodebook) -> None:
        """Take in what was gathered since the last call, if anything was, and set the entries."""
        if not self.images:
            return
        self.mean_count.copy_(moved(self.mean_count, self.uses, self.decay))
        self.mean_sum.copy_(moved(self.mean_sum, self.sums, self.decay))
        new = self.age >= NEVER
        self.age.add_(self.images).masked_fill_(self.uses > 0, 0.0)
        self.update()
        if self.unused:
            dead = (self.age >= self.unused) | new
            self.mean_count.masked_fill_(dead, 1.0)
            self.mean_sum.copy_(torch.where(dead[:, None], self.spare, self.mean_sum))
            self.age.masked_fill_(dead, 0.0)
        book.entries.copy_(self.mean_sum / smoothed(self.mean_count)[:, None])
        self.sums.zero_()
        self.spare.zero_()


def moved(mean: Tensor, new: Tensor, decay: float) -> Tensor:
    """One step of a moving average."""
    return decay * mean + (1 - decay) * new


def smoothed(counts: Tensor, eps: float = 1e-5) -> Tensor:
    """[codes] -> the same with Laplace smoothing, which keeps the total (van den Oord 2017's published code)."""
    total = counts.sum()
    return (counts + eps) / (total + len(counts) * eps) * total
