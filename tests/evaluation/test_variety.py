"""Images that are empty or all alike are named, and those of odd but varied data are not."""

import torch
from torch import Tensor

from limner.evaluation.images import Images
from limner.evaluation.variety import collapse, variety


def sprites(n: int = 40, seed: int = 0) -> Tensor:
    """RGBA [N, 4, 8, 8], alpha premultiplied: half of each picture is transparent."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 4, 8, 8, generator=generator) * 2 - 1
    images[:, 3] = 1
    images[..., :4] = -1
    return images


def found(drawn: Tensor, real: Tensor) -> str | None:
    return collapse(*(variety(Images.of(each, each.shape[1])) for each in (drawn, real)))


def test_what_a_collapsed_generator_draws_is_named() -> None:
    real = sprites()
    assert found(sprites(seed=1), real) is None
    assert found(torch.full((40, 4, 8, 8), -1.0), real) == "100% are wholly transparent"
    some = sprites(seed=1)
    some[:30] = -1  # three quarters of them
    assert found(some, real) == "75% are wholly transparent"
    faint = torch.full((40, 4, 16, 16), -1.0)
    faint[:, :, 3, 5] = 0.0  # what r3gan drew after 40 s of sprites: a speck or two
    assert found(faint, real.repeat(1, 1, 2, 2)) == "100% are wholly transparent"
    colours = torch.rand(40, 3, 1, 1).mul(2).sub(1).expand(40, 3, 8, 8)
    assert found(colours, real[:, :3]) == "100% are of a single colour"
    same = sprites(1, seed=2) + 0.02 * torch.randn(40, 4, 8, 8)
    assert found(same.clamp(-1, 1), real) == "all are alike"


def test_a_black_drawing_on_transparency_is_neither_empty_nor_flat() -> None:
    drawing = sprites()
    drawing[:, :3] = -1  # seen over white alone
    assert variety(Images.of(drawing, 4)).flat == 0
    assert found(drawing, drawing) is None
    assert found(torch.full_like(drawing, -1.0), drawing) == "100% are wholly transparent"


def test_what_is_usual_among_real_images_is_no_fault() -> None:
    colours = torch.rand(40, 3, 1, 1).mul(2).sub(1).expand(40, 3, 8, 8)
    assert found(colours, colours.flip(0)) is None
    assert found(torch.zeros(40, 3, 8, 8), colours) == "all are alike"


def test_the_difference_is_that_of_two_of_them() -> None:
    images = sprites(6)[:, :3]
    pairs = [(a - b).square().mean() for i, a in enumerate(images) for b in images[:i]]
    expected = torch.stack(pairs).mean().sqrt()
    torch.testing.assert_close(  # images are measured as 8-bit files hold them
        torch.tensor(variety(Images.of(images, 3)).difference), expected, atol=0.01, rtol=0
    )
