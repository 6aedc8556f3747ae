"""Means and deviations of features."""

import pytest
import torch

from motion.features.statistics import FeatureStatistics


def test_all_frames_count_the_same_however_they_are_split():
    features = torch.randn(50, 4, dtype=torch.float64) * 0.01 + 1000
    statistics = FeatureStatistics.fit(features.split([1, 9, 40]))
    torch.testing.assert_close(statistics.mean, features.mean(dim=0).float())
    torch.testing.assert_close(
        statistics.std, features.std(dim=0, correction=0).float(), rtol=1e-5, atol=0
    )
    assert statistics.mean.dtype == torch.float32


def test_channels_that_do_not_change_are_not_scaled():
    features = torch.randn(50, 2)
    features[:, 1] = 3.0
    statistics = FeatureStatistics.fit([features])
    assert statistics.std[1] == 1.0 and statistics.mean[1] == 3.0 and statistics.std[0] != 1.0


@pytest.mark.parametrize(
    "mean, std, message",
    [
        (torch.zeros(3), torch.ones(2), r"\(3,\) and \(2,\)"),
        (torch.zeros(1, 3), torch.ones(1, 3), "must be"),
        (torch.full((2,), torch.nan), torch.ones(2), "finite"),
        (torch.zeros(2), -torch.ones(2), "not negative"),
    ],
)
def test_bad_statistics_are_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatistics(mean, std)


def test_nothing_to_fit_on():
    with pytest.raises(ValueError, match="no features"):
        FeatureStatistics.fit([])
    with pytest.raises(ValueError, match="5 channels among some of 4"):
        FeatureStatistics.fit([torch.zeros(2, 4), torch.zeros(2, 5)])
