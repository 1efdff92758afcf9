"""Codebooks: published numbers, moving averages over parts and processes, codes that fall out of use."""

import math

import pytest
import torch
from torch.testing import assert_close

from limner.losses.tokens import perplexity
from limner.networks import code_use
from limner.networks.checks import SettingsError
from limner.networks.code_use import CodeUse, MovingAverage, smoothed
from limner.networks.quantise import Codebook, GridCodebook, MovingCodebook, Quantiser
from tests.helpers import golden


def as_map(vectors: torch.Tensor) -> torch.Tensor:
    """[N, D] -> [1, D, N, 1]"""
    return vectors.T[None, :, :, None]


# ---- published numbers


def test_moving_averages_agree():
    inputs, expected = golden("vq_ema_step")
    vectors, decay = as_map(inputs["vectors"]), inputs["decay"]
    codes, width = inputs["codebook"].shape
    book = MovingCodebook(codes, width).double()
    average = MovingAverage(book, decay, 0).double()
    book.entries.copy_(inputs["codebook"])
    average.mean_count.copy_(inputs["counts"])
    average.mean_sum.copy_(inputs["sums"])
    _, entry, index = book(vectors)
    assert index.flatten().tolist() == expected["index"].int().tolist()
    assert_close(
        0.25 * (vectors - entry).square().mean(),
        torch.tensor(expected["commitment_loss"], dtype=torch.float64),
    )
    average.gather(index, vectors)
    average.update_entries(book)
    assert_close(average.mean_count, expected["counts"])
    assert_close(average.mean_sum, expected["sums"])
    assert_close(smoothed(average.mean_count, inputs["eps"]), expected["smoothed"])
    assert_close(book.entries, expected["codebook"], rtol=1e-9, atol=1e-9)


def test_codes_in_use_and_perplexity_agree():
    inputs, expected = golden("codebook_use")
    use = CodeUse(inputs["codes"]).double()
    use.count(inputs["index"].long()[None, None])
    use.update()
    assert use.used() == expected["used"]
    assert float(perplexity(use.recent)) == pytest.approx(expected["perplexity"], rel=1e-9)


@pytest.mark.parametrize("codes", [1, 7, 512])
def test_the_perplexity_of_equal_shares_is_the_number_of_codes(codes):
    assert_close(perplexity(torch.full((codes,), 3.0).double()), torch.tensor(float(codes)).double())
    assert perplexity(torch.eye(codes)[0]) == 1


def test_the_fixed_grid_agrees():
    inputs, expected = golden("fsq")
    book = GridCodebook(inputs["levels"].int().tolist(), inputs["eps"]).double()
    z = as_map(inputs["z"])
    assert book.codes == expected["codes"]
    assert_close(book.bound(inputs["z"]), expected["bounded"], rtol=1e-9, atol=1e-9)
    given, entry, index = book(z)
    assert index.flatten().tolist() == expected["index"].int().tolist()
    assert_close(entry, as_map(expected["code"]))
    assert_close(given, entry)


@pytest.mark.parametrize("levels", [(2,), (3, 4), (8, 6, 5), (7, 5, 5, 5, 5), (2,) * 10])
def test_every_index_of_the_grid_is_one_code_and_back(levels):
    book = GridCodebook(levels).double()
    vectors = book.vectors()
    assert vectors.shape == (book.codes, len(levels)) == (math.prod(levels), len(levels))
    assert len(vectors.unique(dim=0)) == book.codes and vectors.abs().max() <= 1
    # The network's numbers that become these codes: the bound's inverse.
    size = book.levels
    half, offset = (size - 1) * (1 + book.eps) / 2, (1 - size % 2) / 2
    z = torch.atanh((vectors * (size // 2) + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(book.nearest(as_map(z)).flatten(), torch.arange(book.codes))
    assert torch.equal(book.lookup(torch.arange(book.codes)[None, :, None]), as_map(vectors))


def test_the_fixed_grid_passes_the_gradient_of_its_bound():
    book = GridCodebook((8, 5)).double()
    z = torch.tensor([[0.3, -0.7]], dtype=torch.float64, requires_grad=True)
    given, _, _ = book(as_map(z))
    (slope,) = torch.autograd.grad(given.sum(), z)
    (expected,) = torch.autograd.grad((book.bound(z) / (book.levels // 2)).sum(), z)
    assert_close(slope, expected)
    assert (slope > 0).all()


@pytest.mark.parametrize("levels", [(), (8, 1), (0,)])
def test_a_grid_of_one_level_is_refused(levels):
    with pytest.raises(SettingsError, match="levels must be 2 or more"):
        GridCodebook(levels)


@pytest.mark.parametrize("book", [Codebook(12, 3), MovingCodebook(12, 3), GridCodebook((3, 2, 2))])
def test_every_codebook_looks_up_what_it_lists(book: Quantiser):
    index = torch.randint(12, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    entry = book.lookup(index)
    assert entry.shape == (2, 3, 4, 5) and book.vectors().shape == (12, 3)
    assert torch.equal(entry.movedim(1, -1), book.vectors()[index])


# ---- moving averages


def gathered(average: MovingAverage, book: MovingCodebook, images: torch.Tensor, seed: int = 0) -> None:
    """As a loss does it: [B, D, h, w], with the generator that the loop seeds."""
    torch.manual_seed(seed)
    average.gather(book.nearest(images), images)


def pair(unused: int = 0, codes: int = 6) -> tuple[MovingAverage, MovingCodebook]:
    torch.manual_seed(3)
    book = MovingCodebook(codes, 2).double()
    return MovingAverage(book, 0.9, unused).double(), book


def test_parts_of_a_step_add_up():
    images = torch.randn(8, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, book = pair(unused=10)
    parts, other = pair(unused=10)
    gathered(whole, book, images)
    for part in images.split(4):
        gathered(parts, other, part)
    parts.spare.copy_(whole.spare)  # drawn from the first images of the step
    whole.update_entries(book)
    parts.update_entries(other)
    assert_close(book.entries, other.entries)
    assert_close(whole.mean_sum, parts.mean_sum)


def test_processes_update_alike_and_as_one_process_does(monkeypatch):
    """Each adds its part; the loop gives all the mean of their buffers."""
    images = torch.randn(8, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alone, book = pair(unused=10)
    for seed, part in enumerate(images.split(4)):
        gathered(alone, book, part, seed)
    ranks = [pair(unused=10) for _ in range(2)]
    for rank, (average, own) in enumerate(ranks):
        monkeypatch.setattr(code_use, "process", lambda rank=rank: (rank, 2))
        gathered(average, own, images[4 * rank : 4 * rank + 4], rank)
    monkeypatch.undo()
    for name, buffer in ranks[0][0].named_buffers():
        mean = (buffer + ranks[1][0].get_buffer(name)) / 2
        for average, _ in ranks:
            average.get_buffer(name).copy_(mean)
    for average, own in [(alone, book), *ranks]:
        average.update_entries(own)
        assert_close(own.entries, book.entries)
        assert_close(average.idle, alone.idle)


def test_codes_out_of_use_are_restarted_as_vectors_of_the_batch():
    average, book = pair(unused=12, codes=3)
    start = torch.tensor([[0.0, 0.0], [5.0, 5.0], [9.0, 9.0]], dtype=torch.float64)
    book.entries.copy_(start)
    average.mean_sum.copy_(start)
    average.age.zero_()
    images = torch.full((4, 2, 1, 1), 0.25, dtype=torch.float64)  # near the first code alone
    for _ in range(2):
        gathered(average, book, images)
        average.update_entries(book)
    assert_close(book.entries[1:], start[1:], rtol=1e-4, atol=0)  # 8 images are fewer than 12
    gathered(average, book, images)
    average.update_entries(book)
    assert_close(book.entries[1:], torch.full((2, 2), 0.25).double(), rtol=1e-3, atol=0)
    assert average.used() == 1 and average.age.tolist() == [0, 0, 0]


def test_a_new_codebook_begins_as_vectors_of_the_first_batch():
    average, book = pair(unused=100, codes=32)
    images = 100 + torch.randn(4, 2, 4, 4, dtype=torch.float64)
    gathered(average, book, images)
    average.update_entries(book)
    vectors = images.movedim(1, -1).flatten(0, 2)
    assert torch.cdist(book.entries, vectors).min(1).values.max() < 0.01
    before = book.entries.clone()
    average.update_entries(book)  # nothing was gathered since
    assert torch.equal(book.entries, before)


def test_restarts_depend_on_the_seed_of_the_step_alone():
    images = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    books = []
    for _ in range(2):
        average, book = pair(unused=100, codes=8)
        gathered(average, book, images, seed=5)
        average.update_entries(book)
        books.append(book.entries)
    assert torch.equal(*books)


def test_a_moving_codebook_has_no_gradient():
    assert not list(MovingCodebook(4, 2).parameters())
    assert [name for name, _ in Codebook(4, 2).named_parameters()] == ["entries.weight"]
