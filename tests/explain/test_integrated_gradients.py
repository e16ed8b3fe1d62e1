"""The points and weights of the rules by which Integrated Gradients integrate."""

import pytest

from distilens.explain.integrated_gradients import quadrature


@pytest.mark.parametrize("rule", ["gauss", "trapezoid", "riemann"])
@pytest.mark.parametrize("steps", [1, 2, 5, 32])
def test_quadrature_integrates_a_line(rule, steps):
    points, weights = quadrature(rule, steps)
    assert sum(weights) == pytest.approx(1)
    assert sum(w * p for p, w in zip(points, weights, strict=True)) == pytest.approx(0.5)


def test_gauss_legendre_integrates_high_powers_exactly():
    points, weights = quadrature("gauss", 6)
    assert all(0 < point < 1 for point in points)
    for power in range(12):
        assert sum(w * p**power for p, w in zip(points, weights, strict=True)) == pytest.approx(
            1 / (power + 1), rel=1e-12
        )


def test_the_trapezoid_has_both_ends_at_half_weight_and_riemann_the_middles():
    assert quadrature("trapezoid", 5) == ([0, 0.25, 0.5, 0.75, 1], pytest.approx([1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8]))
    assert quadrature("riemann", 4) == ([0.125, 0.375, 0.625, 0.875], [0.25] * 4)
