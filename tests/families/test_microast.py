"""microast: the style of any picture, its signals, the paintings that a run keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families.microast import KEPT, LARGEST, Microast, MicroASTConfig, MicroASTSampling
from limner.losses.style import contrastive_loss


def build(channels: int = 3, given: int = 3) -> Microast:
    torch.manual_seed(0)
    config = MicroASTConfig(perceptual_network="random", width=8)
    model = Microast(config, ImageSpec(channels, 32, 32, given=ImageSpec(given, 32, 32)))
    model.paintings.copy_(torch.randint(256, model.paintings.shape))
    return model.requires_grad_(False).eval()


def pictures(n: int, channels: int = 3, size: tuple[int, int] = (32, 24), seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, *size, generator=generator) * 2 - 1


def apply(model: Microast, image: Tensor, seeds: list[int] | None = None, **sampling: Any) -> Tensor:
    draws = Draws(seeds or range(len(image)))
    return model.translate(image, Condition(len(image)), MicroASTSampling(**sampling), draws)


def test_the_style_is_that_of_the_picture_named() -> None:
    model, image = build(), pictures(2)
    one, other = (apply(model, image, style=pictures(1, size=(50, 40), seed=seed)) for seed in (2, 3))
    assert one.shape == image.shape and one.abs().max() <= 1
    assert (one - other).abs().max() > 1e-3
    alone = apply(model, image[:1], style=pictures(1, size=(50, 40), seed=2))
    torch.testing.assert_close(alone, one[:1], atol=1e-5, rtol=0)


def test_without_a_style_each_image_is_painted_in_one_of_the_runs_paintings() -> None:
    """By its own stream, so alone as in a batch."""
    model, image = build(), pictures(6)
    together = apply(model, image, list(range(6)))
    for i in (0, 3):
        torch.testing.assert_close(apply(model, image[i : i + 1], [i])[0], together[i], atol=1e-5, rtol=0)
    same = apply(model, image[:1].expand(6, -1, -1, -1), list(range(6)))
    assert len({round(float(x), 5) for x in same.mean((1, 2, 3))}) > 1


def test_strength_scales_the_style_and_0_is_the_given_picture() -> None:
    model, image, style = build(), pictures(2), pictures(1, seed=4)
    made = {s: apply(model, image, style=style, strength=s) for s in (0.0, 0.05, 0.25, 0.5, 1.0)}
    assert torch.equal(made[0.0], image)
    signals = model.network.signals(style).expand(2)
    for s in (0.25, 0.5, 1.0):  # the share in the statistics of features, as published
        torch.testing.assert_close(made[s], model.network(image, signals, s).clamp(-1, 1))
    faded = model.network(image, signals, 0.05).clamp(-1, 1)
    torch.testing.assert_close(made[0.05], 0.8 * image + 0.2 * faded)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(channels: int) -> None:
    """Paintings in the data's channels, contents in theirs; alpha of the content stays."""
    model = build(channels=3, given=channels)
    image = pictures(2, channels)
    made = apply(model, image, style=pictures(1, channels, seed=5))
    assert made.shape == image.shape
    if channels == 4:
        assert torch.equal(made[:, 3:], image[:, 3:])
    for value in model.loss(Batch(pictures(2), Condition(2, image=pictures(2, channels)))).values():
        assert value.isfinite()


@pytest.mark.parametrize("size", [(1, 1), (15, 400)])
def test_a_style_picture_that_shows_nothing_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(LimnerError, match=f"{size[0]}x{size[1]} pixels, too few"):
        apply(build(), pictures(1), style=pictures(1, size=size))


def test_a_large_style_picture_is_scaled_down() -> None:
    model = build()
    seen: list[tuple[int, ...]] = []
    model.network.style_encoder.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[2:])))
    apply(model, pictures(1), style=pictures(1, size=(LARGEST + 88, 2 * LARGEST + 176)))
    assert seen == [(LARGEST, 2 * LARGEST)]


def test_a_run_keeps_the_last_paintings_that_it_was_trained_on() -> None:
    model = build().train()
    batch = Batch(pictures(3, size=(32, 32)), Condition(3, image=pictures(3, size=(32, 32), seed=9)))
    before = model.paintings.clone()
    model.loss(batch)
    assert torch.equal(model.paintings[3:], before[: KEPT - 3])
    torch.testing.assert_close(model.paintings[:3] / 127.5 - 1, batch.image, atol=1 / 255, rtol=0)
    model.eval().loss(batch)
    assert torch.equal(model.paintings[3:], before[: KEPT - 3])  # a held-out loss leaves them


def test_contrast_compares_each_picture_with_all_styles_of_the_batch() -> None:
    """A picture's own style over the sum of the others (Wang 2023, eq. 7)."""
    drawn = [torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0], [1.0]])]
    wanted = [torch.tensor([[0.0, 2.0], [2.0, 2.0]]), torch.tensor([[1.0], [4.0]])]
    own = [2.0 + 0, 2.0 + 9]  # means of squares over channels, summed over signals
    other = [4.0 + 9, 4.0 + 0]
    expected = own[0] / other[0] + own[1] / other[1]
    assert float(contrastive_loss(drawn, wanted)) == pytest.approx(expected)
    assert (
        float(contrastive_loss([x[:1] for x in drawn], [x[:1] for x in wanted])) == 0
    )  # nothing to contrast


def test_it_needs_two_folders() -> None:
    with pytest.raises(LimnerError, match="name two sources, the paintings second"):
        Microast(MicroASTConfig(), ImageSpec(3, 32, 32))
