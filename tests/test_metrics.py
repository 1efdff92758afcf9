"""Measures against public numbers, known distributions, and each other."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from limner.metrics import distances, neighbours, pixels
from limner.settings import LimnerError

f64 = partial(torch.tensor, dtype=torch.float64)


def features(n, d=6, seed=0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


# Distances ----------------------------------------------------------------------------------------------


def test_frechet_matches_the_golden_numbers():
    sigma1 = [
        [5.4695, 0.1894, 2.0327, 1.3663],
        [0.1894, 8.0079, -0.0168, 1.1401],
        [2.0327, -0.0168, 2.0506, 0.3588],
        [1.3663, 1.1401, 0.3588, 1.1888],
    ]
    sigma2 = [
        [4.8249, -1.9194, 0.0707, -0.6412],
        [-1.9194, 2.7014, 0.1235, 0.6567],
        [0.0707, 0.1235, 0.3705, 0.0696],
        [-0.6412, 0.6567, 0.0696, 1.1582],
    ]
    one = f64([-1.973, -0.233, -0.911, 0.577]), f64(sigma1)
    two = f64([0.486, -0.67, -0.679, 0.286]), f64(sigma2)
    assert distances.frechet(*one, *two) == pytest.approx(10.097645948008804, rel=1e-6)
    a = [
        [0.453, -0.893, -0.477], [0.393, 0.961, -1.797], [-1.168, 0.187, 0.642], [0.466, 1.153, 0.256],
        [-0.315, -0.648, -0.497], [-0.487, -1.909, -0.314], [0.847, 1.593, -0.185], [-0.5, -1.385, -0.773],
        [-0.068, 1.243, 0.37],
    ]  # fmt: skip
    b = [
        [1.624, 1.017, -0.09], [0.338, 0.173, 0.457], [-0.284, 1.569, 1.368], [0.602, 0.765, -0.035],
        [0.39, 0.209, 0.706], [0.554, -1.086, -1.173], [-1.408, -1.176, -0.437], [-0.023, 0.909, 0.488],
    ]  # fmt: skip
    found = distances.frechet_distance(f64(a), f64(b))
    assert found == pytest.approx(0.68692852281695, rel=1e-6)
    zero, eye = torch.zeros(4).double(), torch.eye(4).double()
    assert distances.frechet(zero, eye, f64([3.0, 0, 0, 0]), 4 * eye) == pytest.approx(13)
    # One covariance of less than full rank.
    assert distances.frechet_distance(features(3), features(3)) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_sum_written_out():
    x, y = features(5, 3), features(4, 3, seed=1, shift=0.5)

    def kernel(a, b):
        return float(a @ b / 3 + 1) ** 3

    within_x = [kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j]
    within_y = [kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j]
    across = [kernel(a, b) for a in x for b in y]
    expected = sum(within_x) / 20 + sum(within_y) / 12 - 2 * sum(across) / 20
    assert distances.kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_real_against_real_is_zero_within_its_interval_and_a_shift_is_not():
    x, y, moved = features(800), features(800, seed=1), features(800, seed=2, shift=0.3)

    def spread(a, b):
        value = distances.kernel_distance(a, b)
        parts = zip(distances.halves(800, 20, 1), distances.halves(800, 20, 2), strict=True)
        return distances.interval(value, [distances.kernel_distance(a[i], b[j]) for i, j in parts])

    low, high = spread(x, y)
    assert low < 0 < high
    assert spread(x, moved)[0] > 0


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """The mean of 60 normal numbers: 95% of the intervals hold 0."""
    hits = 0
    for seed in range(200):
        x = features(60, 1, seed)
        value = x.mean().item()
        low, high = distances.interval(value, [x[i].mean().item() for i in distances.halves(60, 40, seed)])
        hits += low < 0 < high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_floor_falls_with_the_number_of_images():
    x = features(2000, 16)
    few, n_few = distances.floor(distances.frechet_distance, x, 50)
    many, n_many = distances.floor(distances.frechet_distance, x, 5000)
    assert n_few == 50 and n_many == 1000
    assert 0 < many < few


def test_inception_score_matches_the_golden_number():
    p = f64([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.05, 0.05, 0.9]])
    assert distances.inception_score(p) == pytest.approx(1.435827111444629, abs=1e-9)
    assert distances.inception_score(torch.eye(5)) == pytest.approx(5)  # sure and varied; zeros do no harm


# Neighbours ---------------------------------------------------------------------------------------------

REAL = f64(
    [
        [0.803, -1.014], [-2.093, 0.849], [-0.158, -0.373], [0.063, -0.177], [0.034, -0.782],
        [-0.966, -0.737], [-1.144, -3.6], [-1.455, 1.814], [0.005, -0.737], [2.329, -1.533],
    ]
)  # fmt: skip
DRAWN = f64(
    [
        [0.511, 1.726], [0.964, 1.778], [0.88, 1.888], [0.823, 1.301], [1.214, 0.545],
        [0.196, 0.347], [2.007, 1.061], [0.51, 0.35], [1.931, 0.952], [1.515, 0.571],
    ]
)  # fmt: skip


def test_neighbours_match_the_golden_numbers():
    assert neighbours.precision_recall(REAL, DRAWN, 3) == pytest.approx((0.8, 0.4), abs=1e-9)
    assert neighbours.precision_recall(REAL, DRAWN, 1) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert neighbours.density_coverage(REAL, DRAWN, 3) == pytest.approx((0.3, 0.3), abs=1e-9)


def test_a_set_against_itself_is_precise_and_complete():
    x = features(300).float()
    assert neighbours.precision_recall(x, x) == (1.0, 1.0)
    assert neighbours.density_coverage(x, x)[1] == 1.0


def test_mode_collapse_is_a_loss_of_recall_not_of_precision():
    real = torch.cat([features(200, 4), features(200, 4, 1, 8)])
    precision, recall = neighbours.precision_recall(real, features(200, 4, 2))
    assert precision > 0.8 and recall < 0.6


def test_copies_are_found_and_held_out_images_are_not():
    training, held = features(500, 8), features(200, 8, 1)
    copies = training[:100] + 1e-3 * features(100, 8, 2)
    assert neighbours.memorised(copies, training, held).double().mean() > 0.95
    assert neighbours.memorised(held, training, held).double().mean() <= 0.05
    assert neighbours.memorised(features(200, 8, 3), training, held).double().mean() < 0.15
    # Data that holds its own copies: only a copy can be found, not everything.
    twice = torch.cat([training, held])
    found = neighbours.memorised(torch.cat([copies[:1], training[:1]]), twice, held)
    assert found.tolist() == [False, True]


# Pixels -------------------------------------------------------------------------------------------------


def pair():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 48, 40, generator=generator, dtype=torch.float64) * 2 - 1
    return x, (x + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(-1, 1)


def test_psnr_and_ssim_match_scikit_image():
    skimage = pytest.importorskip("skimage.metrics")
    x, y = pair()
    for a, b, p, s in zip(x, y, pixels.psnr(x, y), pixels.ssim(x, y), strict=True):
        a, b = a.movedim(0, -1).numpy(), b.movedim(0, -1).numpy()
        assert float(p) == pytest.approx(skimage.peak_signal_noise_ratio(a, b, data_range=2), abs=1e-7)
        expected = skimage.structural_similarity(
            a, b, data_range=2, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(s) == pytest.approx(expected, abs=1e-7)


def test_similarity_of_an_image_with_itself_is_one_and_falls_with_noise():
    x, y = pair()
    for measure in (pixels.ssim, pixels.ms_ssim):
        assert_close(measure(x, x), torch.ones(2, dtype=torch.float64))
        assert (measure(x, y) < 1).all()
        assert (measure(x, y) > measure(x, y.flip(0))).all()
    assert pixels.psnr(x, x).isinf().all()
    with pytest.raises(LimnerError, match="11 pixels"):
        pixels.ssim(x[..., :8], x[..., :8])
    with pytest.raises(LimnerError, match="11 pixels"):
        pixels.ms_ssim(x[..., :8], x[..., :8])


def test_ms_ssim_of_one_scale_is_ssim():
    x, y = (z[..., :20, :20] for z in pair())
    assert_close(pixels.ms_ssim(x, y), pixels.ssim(x, y))


def test_the_pyramid_adds_up_to_the_image():
    x = torch.randn(2, 3, 64, 64)
    levels = pixels._pyramid(x, 16)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    assert levels[0].mean().abs() < 0.05  # what the coarser ones leave


def test_sliced_wasserstein_tells_blur_at_the_fine_level_only():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(64, 3, 32, 32, generator=generator) for _ in range(2))
    blurred = torch.nn.functional.avg_pool2d(y, 5, 1, 2, count_include_pad=False)
    same, other = pixels.sliced_wasserstein(x, y), pixels.sliced_wasserstein(x, blurred)
    assert list(same) == [32, 16]
    assert other[32] > 1.5 * same[32]
    assert math.isfinite(other[16])
