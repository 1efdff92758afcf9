"""Pictures in tiles: equal to the untiled result, within a bound on memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from limner import families
from limner.core import ImageSpec, LimnerError, Model
from limner.inference import tiles
from limner.inference.footprint import Footprint, footprint, peak
from limner.inference.tile_plan import cut, plan, whole
from limner.inference.tiles import Translator, thumbnail


@pytest.fixture
def restorer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Translator]:
    """A translator by the settings of the toy family."""
    toy = str(Path(__file__).parents[1] / "toy")
    monkeypatch.setattr(families, "__path__", [*families.__path__, toy])
    family = families.load("restorer")

    def make(memory: int = 10**10, seed: int = 0, channels: int = 3, **settings: object) -> Translator:
        torch.manual_seed(0)
        model: Model = family(family.Config(**settings), ImageSpec(channels, 16, 16)).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        return Translator(model, family.Sampling(), memory, seed)

    return make


def picture(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """Large shapes and small ones, so that neither a thumbnail nor a tile shows all."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = np.stack([np.sin(9 * x + 5 * y + c) + np.cos(31 * x * y) for c in range(channels)], -1)
    values = waves / 4 + 0.5 + rng.normal(0, 0.1, waves.shape)
    return (values.clip(0, 1) * np.iinfo(dtype).max).astype(dtype)


def tiled(translator: Translator, pixels: np.ndarray, side: int) -> np.ndarray:
    """In tiles whose networks see at most ``side`` x ``side`` pixels."""
    factor = translator.network.factor
    height, width = (max(2, -(-s // factor)) * factor for s in pixels.shape[:2])
    parts = plan(height, width, factor, translator.network.margin(translator.sampling), side**2)
    assert len(parts) > 1
    return translator.in_tiles(pixels, parts)


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("size", [(61, 87), (64, 30), (3, 600)])
def test_tiles_equal_the_untiled_result(restorer, size: tuple[int, int]):
    translator, pixels = restorer(), picture(*size)
    untiled = translator(pixels)
    assert untiled.shape == (2 * size[0], 2 * size[1], 3) and untiled.std() > 10
    assert difference(tiled(translator, pixels, 36), untiled) <= 1


def test_a_margin_that_is_too_small_would_be_noticed(restorer):
    translator, pixels = restorer(), picture(61, 87)
    parts = plan(62, 88, 2, 2, 36**2)
    assert difference(translator.in_tiles(pixels, parts), translator(pixels)) > 1


def test_norms_have_the_statistics_of_the_whole_picture(restorer):
    """Tiles equal the untiled result by the whole picture's statistics, and would not by their own."""
    translator, pixels = restorer(norm=True), picture(61, 87)
    untiled = translator(pixels)
    with translator.statistics_of(pixels):
        assert difference(tiled(translator, pixels, 36), untiled) <= 1
    assert difference(tiled(translator, pixels, 36), untiled) > 10


def test_exact_statistics_are_pooled_over_the_tiles(restorer, monkeypatch: pytest.MonkeyPatch):
    """A picture that does not fit the memory equals the result of unlimited memory."""
    monkeypatch.setattr(tiles, "in_use", lambda device: 0)
    translator, pixels = restorer(norm=True, width=32), picture(301, 203)
    untiled = translator(pixels)
    translator.memory = int((untiled.nbytes + translator.footprint.of(301 * 203 / 3)) / tiles.KEPT)
    thumbnailed = translator(pixels)
    translator.exact = True
    assert difference(translator(pixels), untiled) <= 1 < difference(thumbnailed, untiled)


def test_a_thumbnail_gives_no_seams(restorer):
    """The error against the untiled result is no larger at the borders of tiles than elsewhere."""
    translator, pixels = restorer(norm=True), picture(300, 400)
    untiled = translator(pixels).astype(float)
    small = thumbnail(pixels, 120**2, 2)
    assert small.shape[0] * small.shape[1] <= 120**2
    parts = plan(300, 400, 2, 10, 120**2)
    with translator.statistics_of(small):
        error = np.abs(translator.in_tiles(pixels, parts) - untiled).mean(-1)
    rows = sorted({2 * down.start for down, _ in parts} - {0})
    columns = sorted({2 * across.start for _, across in parts} - {0})
    assert rows and columns
    steps_down, steps_across = np.abs(np.diff(error, axis=0)), np.abs(np.diff(error, axis=1))
    at = [steps_down[r - 1].mean() for r in rows] + [steps_across[:, c - 1].mean() for c in columns]
    assert max(at) <= 1.2 * (steps_down.mean() + steps_across.mean()) / 2


def test_a_memory_bound_makes_tiles_and_is_named_when_it_is_too_small(
    restorer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiles, "in_use", lambda device: 10**8)
    translator, pixels = restorer(width=64), picture(400, 300)
    untiled = translator(pixels)
    translator.memory = int((10**8 + untiled.nbytes + translator.footprint.of(400 * 300 / 3)) / tiles.KEPT)
    seen: list[float] = []
    assert difference(translator(pixels, seen.append), untiled) <= 1
    assert len(seen) > 2 and seen == sorted(seen) and seen[-1] == 1
    translator.memory = 10**8
    with pytest.raises(LimnerError, match=r"do not fit --memory 0.1GB.* takes 0.[12]"):
        translator(pixels)


def test_a_network_that_sees_everything_is_never_tiled(restorer, monkeypatch: pytest.MonkeyPatch):
    translator, pixels = restorer(width=64), picture(400, 300)
    monkeypatch.setattr(type(translator.model), "margin", lambda self, sampling: None)
    assert translator(pixels).shape == (800, 600, 3)
    translator.memory = 2**26
    with pytest.raises(LimnerError, match="see the picture as a whole"):
        translator(pixels)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (5, 5)])
def test_any_size_comes_back_enlarged(restorer, size: tuple[int, int], norm: bool):
    result = restorer(norm=norm, scale=3)(picture(*size))
    assert result.shape == (3 * size[0], 3 * size[1], 3)


def test_16_bits_stay_16_bits(restorer):
    pixels = picture(40, 40, 1, np.uint16)
    result = restorer(channels=1)(pixels)
    assert result.dtype == np.uint16 and len(np.unique(result)) > 1000


def test_noise_lies_where_the_picture_is(restorer):
    """Each random number belongs to a place, so that tiles of a network that draws fit together."""
    translator, pixels = restorer(noise=0.3), picture(90, 150)
    untiled = translator(pixels)
    assert difference(tiled(translator, pixels, 70), untiled) <= 1
    quiet, other = restorer()(pixels), restorer(noise=0.3, seed=1)(pixels)
    for another in (quiet, other):
        assert np.abs(untiled.astype(int) - another).mean() > 5
    residual = untiled[..., 0].astype(float) - quiet[..., 0]
    assert abs(np.corrcoef(residual[:, :64].ravel(), residual[:, 128:192].ravel())[0, 1]) < 0.1


def test_nan_is_an_error(restorer):
    translator = restorer()
    with torch.no_grad():
        translator.model.network.up.bias[0] = torch.nan
    with pytest.raises(LimnerError, match="holds NaN"):
        translator(picture(8, 8))


def test_every_pixel_is_in_one_tile_and_every_tile_sees_its_margin():
    for length, count, factor, margin in [(64, 3, 2, 5), (100, 7, 4, 8), (10, 10, 2, 3), (8, 1, 8, 100)]:
        spans = cut(length, count, factor, margin)
        assert [s.start for s in spans] == [0, *(s.stop for s in spans[:-1])] and spans[-1].stop == length
        for s in spans:
            assert s.seen_start <= max(0, s.start - margin) and s.seen_stop >= min(length, s.stop + margin)
            assert not any(v % factor for v in dataclasses.astuple(s))
    for most in (3000, 900, 700):
        parts = plan(100, 60, 2, 10, most)
        assert max((d.seen_stop - d.seen_start) * (a.seen_stop - a.seen_start) for d, a in parts) <= most
        assert sum((d.stop - d.start) * (a.stop - a.start) for d, a in parts) == 6000
    assert plan(100, 60, 2, 10, 10) == [] and plan(100, 60, 2, 10, 6000) == [whole(100, 60)]


def test_memory_is_measured_and_foretold():
    def run(height: int, width: int) -> None:
        x = torch.zeros(8, height, width)
        y = (x + 1).view(-1)
        del x
        (y + 2).sum()

    assert peak(lambda: run(10, 10)) == 2 * 8 * 100 * 4 + 4
    found = footprint(run, 1)
    assert found.each == pytest.approx(1.3 * 64) and found.most(found.of(5000)) == pytest.approx(5000)
    assert Footprint(100, 2).most(50) == 0
