"""The percentile bootstrap of a statistic of sums."""

import numpy as np
import pytest
from scipy import stats

from distilens.foundation import bootstrap


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def test_a_mean_has_scipys_interval():
    values = np.random.default_rng(0).normal(3, 2, 60)
    found = bootstrap.of_sums(np.stack([values, np.ones(60)], 1), ratio)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert found.value == pytest.approx(values.mean()) and found.n == 60
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.06)


def test_it_covers_the_truth_as_often_as_it_says():
    random, inside = np.random.default_rng(1), 0
    for _ in range(200):
        sizes = random.integers(5, 50, 40)
        rows = np.stack([random.binomial(sizes, 0.3), sizes], 1).astype(float)
        found = bootstrap.of_sums(rows, ratio)
        inside += found.low <= 0.3 <= found.high
    assert 0.89 <= inside / 200 <= 0.99


def test_without_images_there_is_no_number_and_with_one_no_interval():
    assert bootstrap.of_sums(np.zeros((0, 2)), ratio).value is None
    one = bootstrap.of_sums(np.array([[1.0, 4.0]]), ratio)
    assert (one.value, one.low, one.n) == (0.25, None, 1)
    with np.errstate(invalid="ignore"):
        assert bootstrap.of_sums(np.zeros((5, 2)), ratio).value is None


def test_the_same_images_give_the_same_interval():
    rows = np.random.default_rng(2).random((30, 2))
    assert bootstrap.of_sums(rows, ratio) == bootstrap.of_sums(rows, ratio) != bootstrap.of_sums(rows, ratio, seed=1)
