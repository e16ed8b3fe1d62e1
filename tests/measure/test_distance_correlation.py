"""Distance correlation: equal to other implementations, invariant, calibrated, and honest about few samples."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from distilens.errors import UserError
from distilens.measure import distance_correlation as module
from distilens.measure.distance_correlation import (
    Distances,
    between,
    dependence,
    distance_correlation,
    left_out,
    partial,
    remove,
    semi_partial,
    statistic,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direct(x: torch.Tensor) -> torch.Tensor:
    """Distances by the definition."""
    return (x[:, None] - x[None]).square().sum(-1).sqrt()


def three(n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three representations of different widths that have something in common."""
    hidden = normal(n, 6, seed=seed)
    wide = torch.cat([hidden, normal(n, 94, seed=seed + 1)], 1)
    return wide, hidden[:, :3] + normal(n, 3, seed=seed + 2) / 2, hidden[:, 2:] + normal(n, 4, seed=seed + 3)


CASES = {
    "random": lambda: (normal(30, 100), normal(30, 70, seed=1), normal(30, 5, seed=2)),
    "correlated": lambda: three(30),
    "narrow": lambda: tuple(normal(30, 1, seed=seed) for seed in range(3)),
    "labels": lambda: (normal(30, 80), one_hot(torch.arange(30) % 3).double(), normal(30, 90, seed=3)),
    "duplicates": lambda: (normal(6, 100).repeat(5, 1), normal(30, 90, seed=1), normal(15, 70, seed=2).repeat(2, 1)),
    "far from the origin": lambda: tuple(normal(30, 100, seed=seed) + 1e6 for seed in range(3)),
    "nearly the same": lambda: (1 + 1e-6 * normal(30, 100), normal(30, 100, seed=1), normal(30, 2, seed=2)),
    "one outlier": lambda: (torch.cat([normal(29, 100), 30 + normal(1, 100)]), normal(30, 80, seed=1), normal(30, 3)),
}


def u_centred(x: np.ndarray) -> np.ndarray:
    """Definition 2 of Székely and Rizzo 2014, an entry at a time."""
    n = len(x)
    a = np.array([[np.sqrt(((x[i] - x[j]) ** 2).sum()) for j in range(n)] for i in range(n)])
    made = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                made[i, j] = a[i, j] - a[i].sum() / (n - 2) - a[:, j].sum() / (n - 2) + a.sum() / ((n - 1) * (n - 2))
    return made


def product(a: np.ndarray, b: np.ndarray) -> float:
    n = len(a)
    return sum(a[i, j] * b[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 3))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return product(a, b) / np.sqrt(product(a, a) * product(b, b))


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_definition(case):
    x, y, z = CASES[case]()
    a, b, c = (u_centred(part.numpy()) for part in (x, y, z))
    left, right = a - product(a, c) / product(c, c) * c, b - product(b, c) / product(c, c) * c
    assert float(distance_correlation(x, y)) == pytest.approx(cosine(a, b), abs=1e-10)
    assert float(semi_partial(x, y, z)) == pytest.approx(cosine(left, b), abs=1e-10)
    assert float(partial(x, y, z)) == pytest.approx(cosine(left, right), abs=1e-10)


@pytest.mark.slow
def test_it_equals_dcor():
    """Compiled by numba at the first call, which takes a minute."""
    dcor = pytest.importorskip("dcor")
    for make in CASES.values():
        x, y, z = make()
        arrays = [part.numpy() for part in (x, y, z)]
        ours = distance_correlation(x, y), distance_correlation(x, y, biased=True), partial(x, y, z)
        theirs = (
            dcor.u_distance_correlation_sqr(*arrays[:2]),
            dcor.distance_correlation_sqr(*arrays[:2]),
            dcor.partial_distance_correlation(*arrays),
        )
        assert [float(value) for value in ours] == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_distances_are_exact(case):
    for x in CASES[case]():
        expected = direct(x)
        assert torch.allclose(between(x), expected, rtol=1e-10, atol=1e-12 * float(expected.max()))
        assert torch.equal(between(x).diagonal(), torch.zeros(len(x), dtype=torch.float64))


def test_columns_and_pairs_at_a_time_change_nothing(monkeypatch):
    x = torch.cat([normal(20, 200), normal(20, 200) + 1e-7])
    whole = between(x)
    monkeypatch.setattr(module, "AT_ONCE", 40 * 8 * 7)
    assert torch.allclose(between(x), whole, rtol=1e-12)


def test_the_same_geometry_is_1():
    x = normal(30, 100)
    turn = torch.linalg.qr(normal(100, 100, seed=1))[0]
    same = torch.cat([3 * x @ turn + 7, torch.zeros(30, 5, dtype=torch.float64)], 1)
    for biased in (False, True):
        assert float(distance_correlation(x, same, biased=biased)) == pytest.approx(1)
    assert float(distance_correlation(x, x.float())) == pytest.approx(1)
    assert float(distance_correlation(x.view(30, 4, 5, 5), x)) == pytest.approx(1)


def test_what_is_the_same_under_change():
    x, y, z = three()
    turn = torch.linalg.qr(normal(100, 100, seed=1))[0]
    order = torch.randperm(40)
    for value in (distance_correlation, lambda a, b: semi_partial(a, b, z), lambda a, b: partial(a, b, z)):
        assert float(value(5 * x @ turn - 2, y)) == pytest.approx(float(value(x, y)))
    assert float(semi_partial(x[order], y[order], z[order])) == pytest.approx(float(semi_partial(x, y, z)))
    assert float(partial(x, y, z)) == pytest.approx(float(partial(y, x, z)))
    assert float(semi_partial(x, y, z)) != pytest.approx(float(semi_partial(y, x, z)))


def test_partial_is_its_formula():
    x, y, z = three()
    xy, xz, yz = (float(distance_correlation(a, b)) for a, b in ((x, y), (x, z), (y, z)))
    assert float(semi_partial(x, y, z)) == pytest.approx((xy - xz * yz) / math.sqrt(1 - xz**2))
    assert float(partial(x, y, z)) == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))


def test_what_is_removed_is_gone():
    a, b = Distances(normal(20, 3)).centred(), Distances(normal(20, 3, seed=1)).centred()
    left = remove(a, b)
    assert abs(float((left * b).sum())) < 1e-10
    assert torch.allclose(left.sum(0), torch.zeros(20, dtype=torch.float64), atol=1e-10)
    assert not remove(a, 2 * a).any()
    x, y, _ = three()
    for value in (semi_partial(x, y, x), semi_partial(x, y, 2 * x + 1), partial(x, y, x), partial(x, y, y)):
        assert float(value) == 0


@pytest.mark.parametrize(
    "nothing",
    [torch.full((20, 5), 0.1), torch.full((20, 500), 0.1), torch.eye(20), torch.eye(20)[:, :1].expand(20, 90)],
    ids=[
        "constant",
        "constant and wide",
        "all as far from each other",
        "one apart from all others, which are the same",
    ],
)
def test_what_does_not_vary_correlates_0_and_is_noted(nothing):
    y, z = normal(20, 4), normal(20, 4, seed=1)
    assert float(distance_correlation(nothing, y)) == 0
    assert float(semi_partial(nothing, y, z)) == 0
    assert float(semi_partial(y, nothing, z)) == 0
    assert float(semi_partial(y, z, nothing)) == pytest.approx(float(distance_correlation(y, z)))
    assert float(partial(y, z, nothing)) == pytest.approx(float(distance_correlation(y, z)))
    found = dependence(nothing, y)
    assert (found.value, found.z, found.p) == (0, 0, 0.5)
    assert any("does not vary" in note for note in found.notes)


@pytest.mark.parametrize("narrow", [0, 64])
def test_gradients_are_those_of_finite_differences(narrow, monkeypatch):
    monkeypatch.setattr(module, "NARROW", narrow)
    x, y, z = normal(7, 3).requires_grad_(), normal(7, 4, seed=1), normal(7, 2, seed=2)
    assert torch.autograd.gradcheck(lambda a: semi_partial(a, y, z), (x,))
    assert torch.autograd.gradcheck(lambda a: partial(a, y, z), (x,))
    assert torch.autograd.gradcheck(lambda a: distance_correlation(a, y, biased=True), (x,))
    assert torch.autograd.gradgradcheck(lambda a: distance_correlation(a, y), (x,))
    assert torch.autograd.gradcheck(lambda c: semi_partial(y, x.detach(), c), (z.requires_grad_(),))


@pytest.mark.parametrize("width", [3, 80])
def test_the_gradient_is_finite_at_equal_points(width):
    x = normal(6, width).repeat(2, 1).float().requires_grad_()
    semi_partial(x, normal(12, 3), normal(12, 4, seed=1)).backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()
    assert x.grad.dtype == torch.float32
    constant = torch.ones(12, width, requires_grad=True)
    distance_correlation(constant, normal(12, 3)).backward()
    assert not constant.grad.any()


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


@pytest.mark.parametrize("make", [independent, features_and_labels])
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
    assert "8 samples: at independence the deviation is 0.22" in dependence(normal(8, 3), normal(8, 3, seed=1)).notes[0]
    assert not dependence(normal(64, 3), normal(64, 3, seed=1)).notes
    four = dependence(normal(4, 3), normal(4, 3, seed=1))
    assert math.isnan(four.low)
    with pytest.raises(UserError, match="at least 4 samples; given 3"):
        distance_correlation(normal(3, 3), normal(3, 3))


def test_bad_features_are_said():
    broken = normal(6, 3)
    broken[[1, 4], 2] = torch.nan
    with pytest.raises(UserError, match="the features of samples 1, 4 are NaN or infinite"):
        Distances(broken)
    with pytest.raises(UserError, match="given 6, 5 of them"):
        distance_correlation(normal(6, 3), normal(5, 3))


def test_what_is_given_is_a_tensor_of_any_kind_or_its_distances():
    x, y, _ = three()
    ready = Distances(x)
    assert torch.equal(distance_correlation(ready, y), distance_correlation(x, y))
    labels = torch.arange(40) % 4
    assert torch.equal(distance_correlation(x, labels), distance_correlation(x, labels[:, None].double()))
    assert float(distance_correlation(x.bfloat16(), x)) > 0.999
