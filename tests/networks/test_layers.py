"""Layers that many networks share."""

import pytest
import torch

from limner.networks.layers import sinusoids, time_features


@pytest.mark.parametrize("features", [time_features, sinusoids])
def test_times_in_float64_stay_so(features):
    t = torch.rand(3, dtype=torch.float64)
    double = features(t, 8)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), features(t.float(), 8))
    assert features(torch.arange(3), 8).dtype == torch.float32
