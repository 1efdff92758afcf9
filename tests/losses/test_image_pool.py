"""The pool of earlier images: its public rule, its state, and two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.testing import assert_close

from limner.distributed import Ranks, joined
from limner.losses.image_pool import ImagePool
from tests.helpers import golden


def shown(numbers: Tensor) -> Tensor:
    """[B, 1, 1, 1] images in [-1, 1] that stand for numbers."""
    return (numbers.double() * 2 / 255 - 1).reshape(-1, 1, 1, 1)


def numbers(image: Tensor) -> list[int]:
    return ((image.flatten() + 1) * 255 / 2).round().int().tolist()


def test_the_public_rule():
    inputs, expected = golden("image_pool")
    pool, draws, held = ImagePool(inputs["size"], (1, 1, 1)), iter(inputs["draws"].tolist()), 0
    for batch, returned in zip(inputs["batches"], expected["returned"], strict=True):
        chance, place = [], []
        for _ in batch:  # numbers are drawn where the rule needs them
            full, held = held == inputs["size"], min(held + 1, inputs["size"])
            chance.append(next(draws) if full else 0.0)
            place.append(int(next(draws)) if full and chance[-1] > 0.5 else 0)
        made = pool.exchange(shown(batch), torch.tensor(chance), torch.tensor(place))
        assert numbers(made) == returned.int().tolist()
    assert pool.images.flatten().tolist() == expected["pool"].int().tolist()


def test_only_training_moves_it_and_its_state_is_saved():
    torch.manual_seed(0)
    pool = ImagePool(3, (1, 2, 2))
    images = torch.rand(8, 1, 2, 2) * 2 - 1
    assert torch.equal(pool.eval()(images), images) and pool.held == 0
    made = pool.train()(images)
    assert pool.held == 3 and torch.equal(made[:3], images[:3])
    assert {name: value.dtype for name, value in pool.state_dict().items()} == {
        "images": torch.uint8,
        "held": torch.int64,
    }
    other = ImagePool(3, (1, 2, 2))
    other.load_state_dict(pool.state_dict())
    torch.manual_seed(1)
    one = pool(images)
    torch.manual_seed(1)
    assert torch.equal(other(images), one)
    kept = [any(torch.allclose(image, x, atol=1 / 255) for x in images) for image in one]
    assert all(kept), "what it returns are images that it was shown, to a byte"


def test_half_of_what_it_returns_is_earlier():
    torch.manual_seed(0)
    pool = ImagePool(50, (1, 1, 1))
    pool(torch.zeros(50, 1, 1, 1))
    fresh = pool(torch.ones(400, 1, 1, 1))
    assert 0.05 < float((fresh < 0.5).float().mean()) < 0.13, "each of the 50 is returned once"
    assert len(ImagePool(0, (1, 1, 1))(torch.ones(3, 1, 1, 1))) == 3


def ask(rows: slice, seeds: list[int]) -> tuple[Tensor, Tensor]:
    """What a pool returns for these rows of a few steps, where each microbatch has its own seed; and the pool."""
    images = torch.rand(6, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pool, returned = ImagePool(3, (1, 2, 2)), []
    for step in images:
        for seed, image in zip(seeds, step[rows].chunk(len(seeds)), strict=True):
            torch.manual_seed(seed)
            returned.append(pool(image))
    return torch.cat(returned), pool.images


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    with joined(ranks):
        torch.save(ask(ranks.part(4), [rank]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_what_one_has_that_accumulates(tmp_path: Path) -> None:
    mp.start_processes(work, (str(tmp_path),), nprocs=2, start_method="spawn")
    returned, pool = ask(slice(0, 4), [0, 1])
    for rank in range(2):
        found: list[Any] = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_close(found[1], pool)
        assert_close(found[0], returned.unflatten(0, (6, 2, 2))[:, rank].flatten(0, 1))
