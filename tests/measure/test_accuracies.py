"""Shares of images as plain data. How they are computed: tests/foundation/test_estimate.py."""

import torch

from distilens.foundation import estimate
from distilens.measure import mean_interval, share, share_apart

HITS, OTHERS = torch.arange(50) < 20, torch.arange(50) >= 35


def test_shares_are_plain_data_with_the_keys_of_the_files():
    expected = estimate.share_of(HITS)
    assert list(share(HITS).items()) == [("accuracy", 0.4), ("n", 50), ("low", expected.low), ("high", expected.high)]


def test_a_difference_of_shares_is_plain_data():
    expected = estimate.share_apart(HITS, OTHERS)
    assert expected is not None
    assert share_apart(HITS, OTHERS) == {"mean": expected.value, "low": expected.low, "high": expected.high, "n": 50}
    assert expected.value is not None and abs(expected.value - 0.1) < 1e-12
    assert share_apart(HITS[:0], OTHERS[:0]) is None


def test_a_mean_is_plain_data_with_the_number_of_values_left_out():
    assert list(mean_interval(torch.tensor([1.0, 3.0, torch.nan]))) == ["mean", "low", "high", "n", "empty"]
    assert mean_interval(torch.tensor([2.0, torch.nan])) == {"mean": 2, "low": None, "high": None, "n": 1, "empty": 1}
