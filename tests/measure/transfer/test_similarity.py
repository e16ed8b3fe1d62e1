"""What was passed on: scores of likeness and of relevance, and the features that they are of."""

import math

import pytest
import torch
from torch.nn.functional import normalize, one_hot

from distilens.foundation.errors import UserError
from distilens.measure.transfer.dependence import dependence
from distilens.measure.transfer.distance_correlation import Distances, distance_correlation
from distilens.measure.transfer.similarity import cka, fss, rs

LABELS = torch.arange(40) % 4


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clusters(spread: float, seed: int = 0) -> torch.Tensor:
    """Features in which the classes lie apart, the more so the smaller the spread."""
    return torch.eye(4, 30).double()[LABELS] + spread * normal(40, 30, seed=seed)


def test_likeness_is_1_of_the_same_and_0_of_nothing():
    x = normal(40, 30)
    assert fss(x, 2 * x + 1).value == pytest.approx(1)
    assert abs(fss(x, normal(40, 50, seed=1)).value) < 0.1
    assert fss(x, x[:, :10]) == dependence(x, x[:, :10])


def test_relevance_grows_with_how_well_classes_lie_apart():
    values = [rs(clusters(spread), LABELS).value for spread in (1.0, 0.3, 0.1, 0.0)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1)
    assert abs(rs(normal(40, 30), LABELS).value) < 0.1
    assert rs(clusters(0.3), one_hot(LABELS).double()) == rs(clusters(0.3), LABELS)


def test_relevance_given_another_model_is_of_what_that_one_does_not_know():
    weak, strong = clusters(1.0, seed=1), clusters(0.1, seed=2)
    alone, left = rs(strong, LABELS), rs(strong, LABELS, weak)
    assert 0.2 < left.value < alone.value
    assert rs(strong, LABELS, strong).value == 0
    assert rs(weak, LABELS, strong).value < rs(weak, LABELS).value
    assert rs(strong, LABELS, weak, full=True).value != left.value


def test_the_biased_statistic_is_the_released_code_and_says_so():
    x, y = normal(5, 500), normal(5, 500, seed=1)
    found = fss(x, y, biased=True)
    assert found.value == float(distance_correlation(normalize(x), normalize(y), biased=True)) > 0.99
    assert fss(Distances(x), Distances(y), biased=True).value == float(distance_correlation(x, y, biased=True))
    assert math.isnan(found.p)
    assert "biased" in found.notes[0]
    assert rs(x, LABELS[:5], biased=True).value > 0.5
    with pytest.raises(UserError, match="no partial form"):
        rs(x, LABELS[:5], y, biased=True)


def test_cka_is_its_definition_and_invariant():
    """Unbiased: the sum over distinct i, j, q, r of Song et al. 2012, here by brute force."""
    x, y = normal(7, 3), normal(7, 4, seed=1)

    def brute(k, other):
        n, total = len(k), 0.0
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total += float(k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]))
        return total / (n * (n - 1) * (n - 2) * (n - 3))

    grams = [each @ each.T for each in (x, y)]
    expected = brute(*grams) / math.sqrt(brute(grams[0], grams[0]) * brute(grams[1], grams[1]))
    assert cka(x, y) == pytest.approx(expected, abs=1e-10)
    turn = torch.linalg.qr(normal(30, 30, seed=1))[0]
    wide = normal(40, 30)
    assert cka(wide, 3 * wide @ turn + 5) == pytest.approx(1)
    assert abs(cka(wide, normal(40, 500, seed=2))) < 0.2
    assert cka(torch.ones(40, 3), wide) == 0
