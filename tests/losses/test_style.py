"""Losses of style transfer, against the numbers of their formulas."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from limner.losses import style
from limner.networks.restyle import adain, mean_std
from tests.helpers import golden


def close(found: Tensor, expected: Tensor | float) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("over", "name"), [("chw", "gram_chw"), ("hw", "gram_hw"), ("", "gram_sum")])
def test_gram_matrices_by_each_convention(over: str, name: str) -> None:
    inputs, expected = golden("gram_conventions")
    close(style.gram_matrix(inputs["features"], over)[0], expected[name])  # type: ignore[arg-type]


def test_losses_of_johnson_and_of_gatys() -> None:
    inputs, expected = golden("gram_conventions")
    one, other = inputs["features"], inputs["target"]
    grams = [style.gram_matrix(x) for x in (one, other)]
    close(style.gram_loss(grams[:1], grams[1:]), expected["style_mse_of_gram_chw"])
    close(style.gatys_style_loss(one, other), expected["style_gatys"])
    close(style.content_loss(one, other), expected["content_mse"])
    close(style.gatys_content_loss(one, other), expected["content_gatys"])


def test_losses_are_means_over_pictures() -> None:
    """And Gatys' style loss is C^2 / 4 of Johnson's, at any size."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 3, 5, 4, 6, generator=generator, dtype=torch.float64)
    for loss in (style.gatys_style_loss, style.content_loss, style.gatys_content_loss):
        alone = [loss(one[i : i + 1], other[i : i + 1]) for i in range(3)]
        close(loss(one, other), torch.stack(alone).mean())
    grams = [style.gram_matrix(x) for x in (one, other)]
    close(style.gatys_style_loss(one, other), 25 / 4 * style.gram_loss(grams[:1], grams[1:]))


def test_a_gram_matrix_does_not_overflow_in_half_precision() -> None:
    features = torch.full((1, 2, 64, 64), 100.0, dtype=torch.float16)
    assert style.gram_matrix(features, "").eq(64 * 64 * 1e4).all()


def test_total_variation_counts_each_pair_of_neighbours_once() -> None:
    image = torch.tensor([[[[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]]]], dtype=torch.float64)
    close(style.total_variation(image), (1 + 4) + (0 + 1 + 9))
    close(style.total_variation(torch.cat([image, 0 * image])), 7.5)  # the mean over pictures
    close(style.total_variation(image[..., :1, :1]), 0)


def test_adain_takes_the_unbiased_statistics_of_the_style() -> None:
    inputs, expected = golden("adain")
    content, wanted = inputs["content"], inputs["style"]
    close(adain(content, *mean_std(wanted)), expected["adain"])
    close(adain(content, *mean_std(wanted), inputs["alpha"]), expected["alpha"])


def test_mean_and_deviation_of_one_place() -> None:
    mean, deviation = mean_std(torch.full((1, 2, 1, 1), 3.0))
    assert mean.flatten().tolist() == [3, 3]
    assert deviation.flatten().tolist() == pytest.approx([1e-5**0.5] * 2)


def test_statistics_loss_compares_means_and_deviations_of_pictures_of_any_size() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64) for size in (8, 5, 1)]
    close(style.statistics_loss(layers[:2], layers[:2]), 0)
    for a, b in pairwise(layers):
        (mean, std), (wanted, spread) = mean_std(a), mean_std(b)
        expected = (mean - wanted).square().mean() + (std - spread).square().mean()
        close(style.statistics_loss([a], [b]), expected)
    close(style.statistics_loss([layers[0] + 2], [layers[0]]), 4)  # shifted: the deviations agree
