"""Drawn style pictures: always the same, in range, and of textures that differ."""

import pytest
import torch

from limner.networks.images.patterns import PATTERNS, draw_pattern


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("side", [16, 50])
def test_a_pattern_is_a_picture_of_its_own(name: str, side: int) -> None:
    drawn = draw_pattern(name, side)
    assert drawn.shape == (3, side, side) and drawn.abs().max() <= 1 and drawn.std() > 0.1
    torch.manual_seed(5)
    assert torch.equal(draw_pattern(name, side), drawn)
    assert all(not torch.allclose(draw_pattern(other, side), drawn) for other in PATTERNS if other != name)
