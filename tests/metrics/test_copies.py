"""Copies of training images: found under each change, and no more of a perfect generator than is expected."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from limner.data import open_data
from limner.evaluation.real import as_bytes
from limner.metrics.copies import Originals
from limner.metrics.memorised import memorised, threshold


def pictures(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in as_bytes(images)]


def tensor(images: list[Image.Image]) -> Tensor:
    arrays = np.stack([np.asarray(image) for image in images])
    arrays = arrays if arrays.ndim == 4 else arrays[..., None]
    return torch.from_numpy(arrays.copy()).movedim(-1, 1) / 127.5 - 1


def jpeg(image: Image.Image) -> Image.Image:
    image.save(file := io.BytesIO(), "JPEG", quality=50)
    return Image.open(file)


def crop(image: Image.Image, side: int = 29, left: int = 1, top: int = 3) -> Image.Image:
    box = (left, top, left + side, top + side)
    return image.crop(box).resize(image.size, Image.Resampling.BICUBIC)


def moved(images: Tensor, right: int, down: int) -> Tensor:
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="replicate")
    height, width = images.shape[2:]
    return padded[:, :, 4 - down : 4 - down + height, 4 - right : 4 - right + width]


CHANGES = {
    "unchanged": lambda x: x,
    "mirrored": lambda x: x.flip(-1),
    "moved": lambda x: moved(x, 3, -4),
    "moved by one": lambda x: moved(x, -1, 0),
    "cropped": lambda x: tensor([crop(i) for i in pictures(x)]),
    "cropped to 28 of 32": lambda x: tensor([crop(i, 28, 2, 2) for i in pictures(x)]),
    "brighter": lambda x: tensor([ImageEnhance.Brightness(i).enhance(1.2) for i in pictures(x)]),
    "darker": lambda x: tensor([ImageEnhance.Brightness(i).enhance(0.8) for i in pictures(x)]),
    "more contrast": lambda x: tensor([ImageEnhance.Contrast(i).enhance(1.2) for i in pictures(x)]),
    "less contrast": lambda x: tensor([ImageEnhance.Contrast(i).enhance(0.8) for i in pictures(x)]),
    "jpeg": lambda x: tensor([jpeg(i) for i in pictures(x)]),
}


class Split:
    """A source in two parts, with the distances of the second."""

    def __init__(self, source: str, side: int, originals: int = 700, others: int = 200):
        data = open_data([source], size=(side, side), progress=False)
        rows = np.random.default_rng(0).permutation(len(data))
        self.images = data.batch(rows[:originals]).image
        self.others = data.batch(rows[originals : originals + others]).image
        self.originals = Originals(self.images)
        self.distances = self.originals.nearest(self.others).distance


@pytest.fixture(scope="module", params=["digits", "shapes"])
def split(request: pytest.FixtureRequest) -> Split:
    if request.param == "digits":
        pytest.importorskip("sklearn")
    return Split(request.param, 32)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(split: Split, change: str):
    found = split.originals.nearest(CHANGES[change](split.images[:40]))
    copied = found.distance <= threshold(split.distances)
    assert copied.double().mean() >= 0.9
    assert (found.index[copied] == torch.arange(40)[copied]).double().mean() >= 0.9


def test_each_change_is_named():
    split = Split("shapes", 32, 300, 20)
    names = {
        "unchanged": "unchanged", "mirrored": "mirrored", "moved": "moved", "cropped": "cropped",
        "darker": "other brightness", "less contrast": "other brightness", "jpeg": "unchanged",
    }  # fmt: skip
    for change, name in names.items():
        found = split.originals.nearest(CHANGES[change](split.images[:20]))
        assert found.kinds(found.distance < 8).get(name, 0) >= 15, change
    moved_ones = split.originals.nearest(CHANGES["moved"](split.images[:20]))
    assert [str(c) for c in moved_ones.changes].count("moved 3,-4") >= 18
    assert float(moved_ones.distance.max()) < 0.01


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 7), (4, 5, 2), (1, 8, 8), (3, 20, 90), (4, 130, 16)])
def test_images_of_any_shape(shape: tuple[int, int, int]):
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = Originals(images).nearest(images)
    assert found.distance.max() == 0
    if min(shape[1:]) > 1:
        assert found.index.tolist() == list(range(6)) and {c.kind for c in found.changes} == {"unchanged"}


def test_flat_images_and_black_drawings():
    flat = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 16, 16)
    assert Originals(flat).nearest(flat).distance.max() == 0
    drawings = torch.full((2, 4, 16, 16), -1.0)  # black, with opacity in other places
    drawings[0, 3, :6], drawings[1, 3, 10:] = 1, 1
    assert Originals(drawings[:1]).nearest(drawings[1:]).distance > 20


@pytest.mark.parametrize("held_out", [21, 90, 300])
@pytest.mark.parametrize("drawn", [100, 1000])
def test_a_perfect_generator_stays_in_its_interval(
    held_out: int, drawn: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("limner.metrics.memorised.SIMULATIONS", 4000)
    generator = torch.Generator().manual_seed(0)
    trials = [
        memorised(torch.rand(drawn, generator=generator), torch.rand(held_out, generator=generator), {})
        for _ in range(200)
    ]
    holds = np.mean([m.low <= m.expected <= m.high for m in trials])
    expects = np.mean([m.expected_low <= m.value <= m.expected_high for m in trials])
    assert 0.92 <= holds <= 1 and 0.92 <= expects <= 1
    assert np.mean([m.value for m in trials]) == pytest.approx(trials[0].expected, abs=0.01)


def test_copies_among_good_images():
    """Half copies, half as a perfect generator draws: the interval holds the share of both."""
    generator, held = torch.Generator().manual_seed(0), 0
    for _ in range(50):
        drawn = torch.cat([torch.zeros(200), torch.rand(200, generator=generator)])
        found = memorised(drawn, torch.rand(300, generator=generator), {})
        held += found.low <= 0.5 + 0.5 * found.expected <= found.high
    assert held >= 46
    assert memorised(torch.zeros(50), torch.linspace(0.5, 1, 21), {}).low > 0.85
    nothing = memorised(torch.ones(50), torch.linspace(0, 0.5, 90), {})
    assert (nothing.value, nothing.low) == (0, 0) and nothing.high < 0.2
