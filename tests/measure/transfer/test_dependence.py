"""Intervals, p-values and differences of distance correlations: calibrated, and honest about few samples."""

import importlib
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from distilens.foundation.errors import UserError
from distilens.measure.transfer.dependence import contrast, dependence, left_out, statistic
from distilens.measure.transfer.distance_correlation import Distances, distance_correlation

module = importlib.import_module("distilens.measure.transfer.dependence")  # the package has a function of this name


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def three(n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three representations of different widths that have something in common."""
    hidden = normal(n, 6, seed=seed)
    wide = torch.cat([hidden, normal(n, 94, seed=seed + 1)], 1)
    return wide, hidden[:, :3] + normal(n, 3, seed=seed + 2) / 2, hidden[:, 2:] + normal(n, 4, seed=seed + 3)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("parts", [2, 3])
def test_leaving_one_out_is_leaving_one_out(full, parts):
    each = three(12)[:parts]
    found = left_out([Distances(part) for part in each], full)
    for gone in range(12):
        kept = torch.arange(12) != gone
        again = statistic([Distances(part[kept]) for part in each], full)
        assert float(found[gone]) == pytest.approx(float(again), abs=1e-10)


def draws(count: int, n: int, make) -> list:
    return [dependence(*make(n, seed)) for seed in range(count)]


def independent(n, seed):
    return normal(n, 128, seed=2 * seed), normal(n, 96, seed=2 * seed + 1)


def features_and_labels(n, seed):
    return normal(n, 128, seed=seed), one_hot(torch.arange(n) % 10).double()


def dependent(n, seed):
    hidden = normal(n, 16, seed=3 * seed)
    return torch.cat([hidden, normal(n, 64, seed=3 * seed + 1)], 1), torch.cat(
        [hidden, normal(n, 32, seed=3 * seed + 2)], 1
    )


@pytest.mark.parametrize("make", [pytest.param(independent, marks=pytest.mark.slow), features_and_labels])
def test_independent_features_have_mean_0_and_the_p_value_is_one(make):
    found = draws(500, 24, make)
    values, small = np.array([one.value for one in found]), np.mean([one.p < 0.05 for one in found])
    assert abs(values.mean()) < 3.3 * values.std() / 500**0.5
    assert 0.02 < small < 0.085  # the binomial 99.9 % range of 500 at 5 %
    assert np.std([one.z for one in found]) == pytest.approx(1, abs=0.12)
    assert np.mean([one.low <= 0 <= one.high for one in found]) > 0.95


def test_the_interval_covers_what_many_samples_say():
    truth = np.mean([float(distance_correlation(*dependent(600, seed))) for seed in range(1000, 1006)])
    found = draws(200, 64, dependent)
    assert 0.91 < np.mean([one.low <= truth <= one.high for one in found]) <= 1
    assert all(one.p < 0.01 for one in found)


def test_a_bootstrap_would_read_dependence_where_there_is_none():
    """Why intervals are not bootstrapped: samples that are drawn twice are at distance 0 of each other in both."""
    x, y = independent(64, 0)
    drawn = torch.randint(0, 64, (64,), generator=torch.Generator().manual_seed(0))
    again = float(distance_correlation(x[drawn], y[drawn]))
    found = dependence(x, y)
    assert again > 0.5
    assert found.high < 0.2


def test_the_biased_statistic_of_few_samples_says_nothing():
    x, y = normal(5, 2048), normal(5, 2048, seed=1)
    assert float(distance_correlation(x, y, biased=True)) > 0.99
    assert abs(np.mean([one.value for one in draws(200, 8, independent)])) < 0.06


def test_permutations_agree_with_the_t_test():
    x, y = independent(40, 3)
    assert dependence(x, y, permutations=999).p == pytest.approx(dependence(x, y).p, abs=0.06)
    a, b, c = three(40)
    for full in (False, True):
        assert dependence(a, b, c, full=full, permutations=199).p == pytest.approx(1 / 200)
    assert dependence(x, y, permutations=50, seed=1) == dependence(x, y, permutations=50, seed=1)
    assert dependence(x, y, permutations=50, seed=1).p != dependence(x, y, permutations=50, seed=2).p


def test_permutations_are_of_some_of_the_samples(monkeypatch):
    monkeypatch.setattr(module, "PERMUTED", 16)
    x, y = dependent(60, 0)
    few, all_of_them = dependence(x[:16], y[:16], permutations=99), dependence(x, y, permutations=99)
    assert few.p == all_of_them.p
    assert all_of_them.value == pytest.approx(float(distance_correlation(x, y)))


def test_few_samples_are_noted_and_fewer_refused():
    assert (
        "8 samples: the standard deviation at independence is 0.22"
        in dependence(normal(8, 3), normal(8, 3, seed=1)).notes[0]
    )
    assert not dependence(normal(64, 3), normal(64, 3, seed=1)).notes
    four = dependence(normal(4, 3), normal(4, 3, seed=1))
    assert math.isnan(four.low)
    with pytest.raises(UserError, match="at least 4 samples; given 3"):
        distance_correlation(normal(3, 3), normal(3, 3))


@pytest.mark.slow
def test_a_difference_is_that_of_the_two_and_its_interval_covers():
    """The same hidden part in both, in one of them behind more noise."""

    def make(n, seed):
        hidden = normal(n, 8, seed=4 * seed)
        clear, dim = (
            torch.cat([hidden, noise * normal(n, 24, seed=4 * seed + 1 + at)], 1) for at, noise in enumerate((0.5, 1.0))
        )
        return clear, dim, torch.cat([hidden, normal(n, 8, seed=4 * seed + 3)], 1)

    truth = np.mean([contrast((c, y), (d, y)).value for c, d, y in (make(400, seed) for seed in range(1000, 1006))])
    found, wide = [], []
    for seed in range(200):
        clear, dim, y = make(64, seed)
        found.append(contrast((clear, y), (dim, y)))
        if seed >= 50:
            continue
        one, other = dependence(clear, y), dependence(dim, y)
        assert found[-1].value == pytest.approx(one.value - other.value)
        wide.append(math.hypot(one.high - one.low, other.high - other.low))
    assert 0.9 < np.mean([one.low <= truth <= one.high for one in found]) <= 1
    assert np.mean([one.high - one.low for one in found[:50]]) < 0.8 * np.mean(wide)
    clear, dim, y = make(64, 0)
    assert contrast((clear, y, dim), (clear, y, dim)).high == 0
    assert contrast((dim, y), (clear, y)).value == -contrast((clear, y), (dim, y)).value
    with pytest.raises(UserError, match="needs at least 5 samples; given 4"):
        contrast((clear[:4], y[:4]), (dim[:4], y[:4]))
