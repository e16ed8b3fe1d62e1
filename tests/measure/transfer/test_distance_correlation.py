"""Distance correlation: equal to other implementations, invariant, calibrated, and honest about few samples."""

import importlib
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from distilens.foundation.errors import UserError
from distilens.measure.transfer.dependence import dependence
from distilens.measure.transfer.distance_correlation import (
    Distances,
    between,
    distance_correlation,
    partial,
    remove,
    semi_partial,
)

module = importlib.import_module(
    "distilens.measure.transfer.distance_correlation"
)  # the package has a function of this name


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


def centred_twice(x: np.ndarray) -> np.ndarray:
    """Of Székely, Rizzo and Bakirov 2007, an entry at a time."""
    n = len(x)
    a = np.array([[np.sqrt(((x[i] - x[j]) ** 2).sum()) for j in range(n)] for i in range(n)])
    return np.array([[a[i, j] - a[i].mean() - a[:, j].mean() + a.mean() for j in range(n)] for i in range(n)])


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


@pytest.mark.parametrize("case", CASES)
def test_the_biased_one_is_its_definition(case):
    x, y, _ = CASES[case]()
    a, b = (centred_twice(part.numpy()) for part in (x, y))
    expected = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    assert float(distance_correlation(x, y, biased=True)) == pytest.approx(expected, abs=1e-10)


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


def test_bad_features_are_said():
    broken = normal(6, 3)
    broken[[1, 4], 2] = torch.nan
    with pytest.raises(UserError, match="the features of samples 1, 4 are NaN or infinite"):
        Distances(broken)
    with pytest.raises(UserError, match="given 6, 5 samples"):
        distance_correlation(normal(6, 3), normal(5, 3))
    with pytest.raises(UserError, match="6 rows of features, but an index of 5 samples"):
        Distances(normal(6, 3), torch.arange(5))


def test_other_samples_or_another_order_are_not_compared():
    x, y = Distances(normal(6, 3), torch.arange(6)), Distances(normal(6, 3, seed=1), torch.tensor([0, 1, 3, 2, 4, 5]))
    with pytest.raises(UserError, match="in the same order; at place 2 one has sample 2 and another 3"):
        distance_correlation(x, y)
    assert distance_correlation(x, Distances(normal(6, 3, seed=1), torch.arange(6))).isfinite()
    assert distance_correlation(x, normal(6, 3, seed=1)).isfinite()


def test_centred_distances_are_kept_but_never_without_their_gradient():
    x, y = normal(8, 3).requires_grad_(), normal(8, 3, seed=1)
    ready = Distances(x)
    with torch.no_grad():
        distance_correlation(ready, y)
    assert torch.autograd.grad(distance_correlation(ready, y), x)[0].any()
    kept = Distances(y)
    assert kept.centred() is kept.centred()
    assert kept.centred() is not kept.centred(biased=True)
    assert torch.equal(kept.of_first(5).matrix, Distances(y[:5]).matrix)


def test_what_is_given_is_a_tensor_of_any_kind_or_its_distances():
    x, y, _ = three()
    ready = Distances(x)
    assert torch.equal(distance_correlation(ready, y), distance_correlation(x, y))
    labels = torch.arange(40) % 4
    assert torch.equal(distance_correlation(x, labels), distance_correlation(x, labels[:, None].double()))
    assert float(distance_correlation(x.bfloat16(), x)) > 0.999
