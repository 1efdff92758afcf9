"""Measures against public numbers, known distributions, and each other."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from limner.metrics import distances, neighbours, pixels
from limner.metrics.probes import student
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


def figures_of_halves(figure, *sides, pairs=16):
    """Of random halves of the sides, and of what they leave: [2, pairs]."""
    splits = zip(
        *(distances.disjoint(len(x), len(x) // 2, pairs, i) for i, x in enumerate(sides)), strict=True
    )
    of = [[figure(*(x[s[i]] for x, s in zip(sides, split, strict=True))) for i in (0, 1)] for split in splits]
    return f64(of).T


def half_width(of):
    return student(of.shape[1] - 1) * math.sqrt(distances.variance(*of))


def test_a_shift_is_outside_the_interval():
    x, moved = features(800), features(800, seed=2, shift=0.3)
    value = distances.kernel_distance(x, moved)
    assert value > half_width(figures_of_halves(distances.kernel_distance, x, moved))


def test_an_interval_is_as_wide_as_samples_vary():
    """The mean, which is linear; and the kernel distance of two samples of one distribution, which is degenerate."""
    for figure, sides in ((lambda x: x.mean().item(), 1), (distances.kernel_distance, 2)):
        values, widths = [], []
        for seed in range(60):
            samples = [features(60, 4, 100 * seed + i) for i in range(sides)]
            values.append(figure(*samples))
            widths.append(half_width(figures_of_halves(figure, *samples)))
        inside = sum(abs(value) <= width for value, width in zip(values, widths, strict=True)) / 60
        assert (
            inside >= 0.88 and np.mean(widths) / np.std(values) < 2.7
        )  # the jackknife alone: 3.6 of the second


def test_the_variance_lies_between_a_third_of_the_jackknife_and_all_of_it():
    one = f64([1.0, -1.0, 2.0, -2.0])
    jackknife = float(2 * one.square().sum() / 7)
    assert distances.variance(one, -one) == pytest.approx(jackknife)  # linear: what one gains the rest loses
    assert distances.variance(one, one) == pytest.approx(jackknife / 3)
    assert distances.variance(one, one, 0.5) == pytest.approx(jackknife * 2 / 3)
    assert distances.variance(0 * one, 0 * one) == 0


def test_the_interval_of_a_share_lies_within_0_and_1():
    for share in (0.0, 0.004, 0.5, 0.99, 1.0):
        for variance in (0.0, 1e-5, 1e-2):
            low, high = distances.share_interval(share, variance, 15, 200)
            assert 0 <= low <= share <= high <= 1 and low < high
    assert distances.share_interval(1.0, 0.0, 15, 200)[0] == pytest.approx(0.978, abs=2e-3)  # 200 of 200
    low, high = distances.share_interval(0.5, 0.25 / 1000, 10**6, 7)
    assert (low, high) == pytest.approx((0.469, 0.531), abs=1e-3)  # 500 of 1,000


def test_equal_sets_are_0_apart_though_each_image_is_on_both_sides():
    x = 10 * features(60)
    keys = np.arange(60)
    y, order = x.flip(0), keys[::-1].copy()
    pairs = distances.equal_pairs(keys, order)
    assert torch.equal(x[pairs[0]], y[pairs[1]]) and len(pairs[0]) == 60
    assert distances.kernel_distance(x, y) < -1  # as of samples that were drawn apart
    assert distances.kernel_distance(x, y, pairs) == pytest.approx(0, abs=1e-6)
    assert distances.frechet_distance(x, y) == 0
    assert distances.frechet_distance(x[:10], y[50:]) == 0  # variances of lower rank
    alike = torch.ones(30, 6)  # all of one image
    same = distances.equal_pairs(np.zeros(30, np.int64), np.zeros(30, np.int64))
    assert len(same[0]) == 30 and distances.kernel_distance(alike, alike, same) == 0


def test_pairs_of_equal_keys():
    pairs = distances.equal_pairs(np.array([7, 3, 7, -1]), np.array([7, 9, -1, 7, 7]))
    assert sorted(zip(*(each.tolist() for each in pairs), strict=True)) == [(0, 0), (2, 3), (3, 2)]
    assert [len(each) for each in distances.equal_pairs(np.array([1]), np.array([2]))] == [0, 0]


def test_the_floor_falls_with_the_number_of_images():
    x = features(2000, 16)

    def floor(n):
        parts = list(distances.disjoint(2000, n, 5))
        assert all(len(i) == n and sorted([*i.tolist(), *j.tolist()]) == list(range(2000)) for i, j in parts)
        return sum(distances.frechet_distance(x[i], x[j]) for i, j in parts) / 5

    assert 0 < floor(1000) < floor(50)


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


def test_all_measures_of_overlap_are_those_of_two_tables_of_distances():
    real, drawn = features(70, 4), features(50, 4, 1, 0.5)
    found = neighbours.overlap(real, drawn, 3)
    across = torch.cdist(drawn, real)  # [50, 70]
    reach, drawn_reach = (torch.cdist(x, x).kthvalue(4, dim=1).values for x in (real, drawn))
    assert found.precision == pytest.approx((across <= reach).any(1).double().mean().item())
    assert found.recall == pytest.approx((across <= drawn_reach[:, None]).any(0).double().mean().item())
    assert found.density == pytest.approx((across < reach).sum().item() / (3 * 50))
    assert found.coverage == pytest.approx((across < reach).any(0).double().mean().item())


def test_neighbours_may_be_fewer_for_precision_than_for_density():
    real, drawn = features(70, 4), features(50, 4, 1, 0.5)
    found = neighbours.overlap(real, drawn, 3, 5)
    three, five = neighbours.overlap(real, drawn, 3), neighbours.overlap(real, drawn, 5)
    assert (found.precision, found.recall) == (three.precision, three.recall) != (five.precision, five.recall)
    assert (found.density, found.coverage) == (five.density, five.coverage) != (three.density, three.coverage)


def test_equal_points_are_equally_far_whatever_they_are_compared_with():
    x = 100 + features(40, 8).float()
    twice = torch.cat([x, x])
    assert neighbours.overlap(twice, x, 1) == neighbours.Overlap(
        1.0, 1.0, 0.0, 0.0
    )  # balls of radius 0 are empty


def test_a_set_against_itself_is_precise_and_complete():
    x = features(300).float()
    assert neighbours.precision_recall(x, x) == (1.0, 1.0)
    assert neighbours.density_coverage(x, x)[1] == 1.0


def test_mode_collapse_is_a_loss_of_recall_not_of_precision():
    real = torch.cat([features(200, 4), features(200, 4, 1, 8)])
    precision, recall = neighbours.precision_recall(real, features(200, 4, 2))
    assert precision > 0.8 and recall < 0.6


# Pixels -------------------------------------------------------------------------------------------------


def pair():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 48, 40, generator=generator, dtype=torch.float64) * 2 - 1
    return x, (x + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(-1, 1)


# fmt: off
ONE = f64([
    [0.048, 0.681, 0.799, 0.8, 0.965, 0.444, 0.831, 0.247, 0.05, 0.487, 0.65, 0.921, 0.739, 0.247, 0.518, 0.664],
    [0.293, 0.874, 0.883, 0.56, 0.224, 0.933, 0.39, 0.151, 0.322, 0.335, 0.899, 0.011, 0.207, 0.804, 0.57, 0.609],
    [0.964, 0.411, 0.058, 0.085, 0.114, 0.945, 0.686, 0.082, 0.004, 0.296, 0.369, 0.354, 0.867, 0.762, 0.272, 0.067],
    [0.78, 0.666, 0.585, 0.74, 0.472, 0.897, 0.27, 0.555, 0.133, 0.409, 0.92, 0.509, 0.707, 0.695, 0.543, 0.601],
    [0.091, 0.48, 0.83, 0.39, 0.708, 0.302, 0.328, 0.913, 0.94, 0.489, 0.102, 0.893, 0.531, 0.634, 0.968, 0.525],
    [0.614, 0.554, 0.91, 0.343, 0.014, 0.384, 0.464, 0.421, 0.005, 0.024, 0.569, 0.188, 0.295, 0.369, 0.328, 0.544],
    [0.063, 0.022, 0.768, 0.775, 0.291, 0.96, 0.632, 0.75, 0.502, 0.082, 0.495, 0.65, 0.446, 0.062, 0.736, 0.718],
    [0.331, 0.064, 0.323, 0.953, 0.477, 0.259, 0.293, 0.375, 0.646, 0.645, 0.198, 0.122, 0.015, 0.868, 0.477, 0.416],
    [0.436, 0.602, 0.895, 0.761, 0.584, 0.255, 0.848, 0.271, 1.0, 0.186, 0.281, 0.686, 0.666, 0.614, 0.325, 0.034],
    [0.44, 0.205, 0.111, 0.903, 0.973, 0.991, 0.943, 0.959, 0.212, 0.658, 0.981, 0.986, 0.409, 0.017, 0.226, 0.356],
    [0.298, 0.869, 0.742, 0.112, 0.34, 0.863, 0.602, 0.256, 0.375, 0.153, 0.298, 0.476, 0.173, 0.926, 0.831, 0.353],
    [0.333, 0.131, 0.881, 0.431, 0.394, 0.79, 0.043, 0.438, 0.963, 0.853, 0.83, 0.276, 0.53, 0.938, 0.286, 0.502],
    [0.206, 0.975, 0.335, 0.643, 0.993, 0.637, 0.332, 0.027, 0.048, 0.98, 0.499, 0.549, 0.483, 0.475, 0.41, 0.844],
    [0.8, 0.217, 0.914, 0.883, 0.758, 0.669, 0.951, 0.617, 0.784, 0.658, 0.776, 0.68, 0.27, 0.867, 0.903, 0.788],
    [0.165, 0.93, 0.31, 0.25, 0.496, 0.884, 0.74, 0.756, 0.809, 0.562, 0.349, 0.35, 0.1, 0.484, 0.794, 0.094],
    [0.692, 0.049, 0.714, 0.52, 0.32, 0.191, 0.476, 0.302, 0.373, 0.88, 0.783, 0.267, 0.952, 0.428, 0.146, 0.843],
])
TWO = f64([
    [0.0, 0.568, 0.811, 0.856, 0.944, 0.513, 0.909, 0.24, 0.219, 0.496, 0.724, 0.886, 0.587, 0.331, 0.632, 0.572],
    [0.266, 0.894, 0.923, 0.662, 0.255, 0.771, 0.157, 0.244, 0.437, 0.525, 0.966, 0.211, 0.197, 0.785, 0.53, 0.769],
    [0.953, 0.291, 0.0, 0.0, 0.173, 1.0, 0.704, 0.052, 0.0, 0.4, 0.583, 0.235, 0.892, 0.813, 0.156, 0.0],
    [0.829, 0.702, 0.663, 0.861, 0.593, 1.0, 0.281, 0.636, 0.026, 0.545, 0.975, 0.579, 0.666, 0.624, 0.598, 0.568],
    [0.0, 0.381, 0.823, 0.342, 0.771, 0.34, 0.441, 1.0, 0.897, 0.501, 0.123, 0.956, 0.438, 0.533, 1.0, 0.616],
    [0.625, 0.458, 0.745, 0.331, 0.065, 0.281, 0.397, 0.291, 0.0, 0.0, 0.553, 0.392, 0.419, 0.455, 0.25, 0.711],
    [0.001, 0.0, 0.683, 0.878, 0.243, 0.889, 0.796, 0.649, 0.478, 0.0, 0.339, 0.67, 0.392, 0.1, 0.606, 0.842],
    [0.328, 0.0, 0.489, 0.89, 0.349, 0.267, 0.358, 0.53, 0.573, 0.594, 0.172, 0.16, 0.135, 0.722, 0.289, 0.418],
    [0.507, 0.681, 1.0, 0.577, 0.555, 0.124, 0.757, 0.433, 1.0, 0.101, 0.168, 0.538, 0.852, 0.687, 0.25, 0.091],
    [0.391, 0.256, 0.291, 0.951, 0.809, 0.869, 0.883, 1.0, 0.3, 0.666, 1.0, 0.97, 0.378, 0.111, 0.426, 0.277],
    [0.241, 0.773, 0.906, 0.13, 0.366, 0.937, 0.551, 0.05, 0.352, 0.149, 0.331, 0.362, 0.04, 0.943, 0.833, 0.385],
    [0.168, 0.097, 0.757, 0.488, 0.414, 0.661, 0.0, 0.599, 0.966, 0.67, 0.847, 0.305, 0.601, 1.0, 0.526, 0.439],
    [0.163, 0.98, 0.416, 0.692, 1.0, 0.669, 0.264, 0.04, 0.114, 0.97, 0.578, 0.614, 0.394, 0.456, 0.337, 0.883],
    [0.803, 0.309, 0.928, 0.928, 0.763, 0.581, 0.929, 0.694, 0.925, 0.581, 0.616, 0.723, 0.254, 0.888, 0.821, 0.845],
    [0.255, 1.0, 0.253, 0.368, 0.438, 0.888, 0.747, 0.672, 0.922, 0.591, 0.253, 0.278, 0.005, 0.295, 0.844, 0.09],
    [0.761, 0.015, 0.729, 0.498, 0.401, 0.01, 0.321, 0.236, 0.381, 1.0, 0.888, 0.088, 0.848, 0.25, 0.203, 0.803],
])
# fmt: on


def test_psnr_and_ssim_match_the_golden_numbers():
    one, two = ONE[None, None], TWO[None, None]
    assert float(pixels.psnr(one, two, span=1)) == pytest.approx(20.6150138339922, abs=1e-7)
    assert float(pixels.ssim(one, two, span=1)) == pytest.approx(0.9519091506550927, abs=1e-7)


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
    levels = pixels.pyramid(x, 16)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    assert levels[0].mean().abs() < 0.05  # what the coarser ones leave
    for i, level in enumerate(levels):
        assert torch.equal(pixels.pyramid_level(x, i, 16), level)


def test_sliced_wasserstein_tells_blur_at_the_fine_level_only():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(64, 3, 32, 32, generator=generator) for _ in range(2))
    blurred = torch.nn.functional.avg_pool2d(y, 5, 1, 2, count_include_pad=False)
    same, other = pixels.sliced_wasserstein(x, y), pixels.sliced_wasserstein(x, blurred)
    assert list(same) == [32, 16]
    assert other[32] > 1.5 * same[32]
    assert math.isfinite(other[16])


@pytest.mark.parametrize("kept", [0, 2**24])
def test_sliced_wasserstein_is_that_of_whole_tables(kept, monkeypatch):
    """Images read in parts, and directions in parts: against patches that are cut and sorted at once."""
    x, y = (torch.rand(70, 1, 16, 16, generator=torch.Generator().manual_seed(s)) for s in range(2))
    monkeypatch.setattr(pixels, "PROJECTED", 70 * 8 * 3)
    monkeypatch.setattr(pixels, "KEPT", kept)
    found = pixels.sliced_wasserstein(x, y, patches=8, directions=10, seed=3)
    generator, tables = torch.Generator().manual_seed(3), []
    for images in (x, y):
        cut = []
        for image in images:
            tops, lefts = (torch.randint(10, (8,), generator=generator).tolist() for _ in range(2))
            cut += [image[0, t : t + 7, u : u + 7].flatten() for t, u in zip(tops, lefts, strict=True)]
        table = torch.stack(cut).double()
        tables.append((table - table.mean()) / table.std())
    direction = torch.randn(49, 10, generator=generator)
    p, q = ((table @ (direction / direction.norm(dim=0)).double()).sort(0).values for table in tables)
    assert found == {16: pytest.approx(1000 * float((p - q).abs().mean()), rel=1e-4)}
