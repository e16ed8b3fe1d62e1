"""How many seeds are enough: power by simulation, and looks after every seed that keep the error."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestIndPower, TTestPower

from distilens.foundation.errors import UserError
from distilens.studies.enough_seeds import decide, levels_of_looks, more_seeds, repeated_interval, seeds_needed, spent
from distilens.studies.statistics import compare_seeds, mcnemar

STUDIES = 2_000


# ------------------------------------------------------------------------------------------------ how many


@pytest.mark.parametrize(("paired", "test"), [(True, TTestPower()), (False, TTestIndPower())])
@pytest.mark.parametrize("size", [0.15, 0.3, 1.0, 2.5])
def test_the_number_of_seeds_is_that_of_statsmodels_rounded_up(paired, test, size):
    exact = test.solve_power(size, alpha=0.05, power=0.8)
    assert seeds_needed(1.0, size, paired=paired) == max(2, np.ceil(exact))
    assert seeds_needed(4.0, 4 * size, paired=paired) == seeds_needed(1.0, size, paired=paired)


def test_that_many_seeds_find_the_difference_in_80_percent_of_the_studies():
    n = seeds_needed(0.6, 0.5)
    assert n == 14
    studies = np.random.default_rng(0).normal(0.5, 0.6, (STUDIES, n))
    found = (stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05).mean()
    assert 0.8 - 0.03 < found < 0.85
    assert (stats.ttest_1samp(studies[:, : n // 2], 0, axis=1).pvalue < 0.05).mean() < 0.6


def test_the_number_of_seeds_has_bounds():
    assert seeds_needed(1e-6, 1.0) == seeds_needed(0.0, 1.0) == seeds_needed(1e-12, 1.0) == 2
    assert seeds_needed(1.0, 0.05) is None
    assert seeds_needed(None, 1.0) is None
    assert seeds_needed(1.0, 1.0, power=0.95) > seeds_needed(1.0, 1.0)
    assert seeds_needed(1.0, 1.0, level=0.01) > seeds_needed(1.0, 1.0)
    for wrong in (
        {"points": 0},
        {"points": -1},
        {"power": 1},
        {"level": 0},
        {"spread": -1.0},
        {"points": float("nan")},
    ):
        with pytest.raises(UserError, match="points above 0"):
            seeds_needed(**({"spread": 1.0, "points": 1.0} | wrong))


def test_a_measured_difference_says_how_many_are_missing():
    random = np.random.default_rng(0)
    ours, theirs = random.normal(0.3, 1, 5), random.normal(0, 1, 5)
    for paired in (True, False):
        found = compare_seeds(ours, theirs, paired=paired)
        needed = seeds_needed(found.deviation, 1.0, paired=paired)
        assert seeds_needed(found, 1.0) == needed
        assert more_seeds(found, 1.0) == needed - 5 > 0
        assert more_seeds(found, 100.0) == 0
        assert more_seeds(found, 0.01) is None
    assert more_seeds(compare_seeds([1.0], [0.0], paired=True), 1.0) is None
    with pytest.raises(UserError, match="over test images"):
        more_seeds(mcnemar([True, False], [True, True]), 1.0)


# ------------------------------------------------------------------------------------------------ when to stop


def simulate(truth: float, points: float, maximum: int, seed: int, studies: int = STUDIES) -> dict[str, float]:
    """The share of each decision, in studies with a deviation of 1 that are looked at after every seed until they are decided."""
    counts = dict.fromkeys(("better", "worse", "no difference of that size", "undecided"), 0)
    for differences in np.random.default_rng(seed).normal(truth, 1, (studies, maximum)):
        for n in range(3, maximum + 1):
            decision = decide(differences[:n], points, looks=range(3, n), maximum=maximum)
            if decision != "undecided":
                break
        counts[decision] += 1
    return {name: count / studies for name, count in counts.items()}


def test_at_most_5_percent_of_2000_null_studies_find_a_difference():
    found = simulate(0, 1, maximum=10, seed=0)
    assert 0.02 < found["better"] + found["worse"] <= 0.05
    assert found["no difference of that size"] > 0.4


def test_looking_without_the_rule_finds_far_more():
    studies = np.random.default_rng(0).standard_normal((STUDIES, 10))
    looks = [stats.ttest_1samp(studies[:, :n], 0, axis=1).pvalue < 0.05 for n in range(3, 11)]
    assert np.any(looks, axis=0).mean() > 0.12


@pytest.mark.parametrize("maximum", [5, 10, 20])
def test_the_levels_keep_the_error_if_nothing_else_stops_a_study(maximum):
    """In 100,000 other null studies, with looks after every seed; the standard error is 0.07 points."""
    studies, looks = np.random.default_rng(7).standard_normal((100_000, maximum)), range(2, maximum + 1)
    crossed = np.zeros(len(studies), dtype=bool)
    for n, level in zip(looks, levels_of_looks(tuple(looks), maximum), strict=True):
        part = studies[:, :n]
        t = abs(part.mean(1)) / part.std(1, ddof=1) * n**0.5
        crossed |= t >= stats.t.isf(level / 2, n - 1)
    assert 0.046 < crossed.mean() <= 0.051


@pytest.mark.slow
def test_a_difference_is_found_nearly_as_often_as_with_a_fixed_number_of_seeds():
    fixed = float(TTestPower().power(1.0, 10, 0.05))
    found = simulate(1, 1, maximum=10, seed=1, studies=1_000)
    assert fixed == pytest.approx(0.80, abs=0.01)
    assert fixed - 0.12 < found["better"] < fixed
    assert found["worse"] + found["no difference of that size"] <= 0.05
    assert simulate(-2, 1, maximum=10, seed=2, studies=300)["worse"] > 0.98


def test_the_decision_follows_the_repeated_interval():
    random = np.random.default_rng(0)
    for truth, points, expected in (
        (3, 0.5, "better"),
        (-3, 0.5, "worse"),
        (0, 3, "no difference of that size"),
        (0, 0.1, "undecided"),
    ):
        differences = random.normal(truth, 1, 12)
        interval = repeated_interval(differences, looks=[4, 8], maximum=15)
        assert interval.holds(truth)
        assert interval.value == pytest.approx(differences.mean())
        assert decide(differences, points, looks=[4, 8], maximum=15) == expected
    assert decide(random.normal(0.5, 0.05, 12), 2, maximum=12) == "better"  # although it is small


def test_a_single_look_at_the_planned_end_is_the_t_test():
    differences = np.random.default_rng(0).normal(0.4, 1, 10)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert repeated_interval(differences, maximum=10).ends == pytest.approx((expected.low, expected.high), rel=0.02)


def test_the_same_look_twice_costs_nothing_and_earlier_looks_cost_some():
    differences = np.random.default_rng(0).normal(0.4, 1, 10)
    once = repeated_interval(differences, looks=[5], maximum=10)
    assert repeated_interval(differences, looks=[5, 5, 10], maximum=10) == once
    assert repeated_interval(differences, looks=range(3, 10), maximum=10).half > once.half
    assert repeated_interval([*differences, None, np.nan], looks=[5], maximum=10).ends == once.ends


def test_the_error_is_spent_late():
    shares = [spent(share) for share in (0.25, 0.5, 0.75, 1)]
    assert shares == pytest.approx([8.9e-5, 0.00557, 0.0236, 0.05], rel=0.01)
    assert spent(1, 0.01) == pytest.approx(0.01)
    levels = levels_of_looks((2, 4, 6, 8, 10), 10)
    assert list(levels) == sorted(levels)
    assert 0.03 < levels[-1] < 0.05
    assert sum(levels) > 0.05  # neighbouring looks are alike, so their levels may add up to more


def test_too_few_or_equal_differences_are_undecided():
    for differences in ([], [1.0], [None, 5.0], [0.5, 0.5, 0.5], [0.0] * 5):
        assert decide(differences, 1.0, maximum=10) == "undecided"
    assert repeated_interval([0.5, 0.5], maximum=10).ends is None
    assert repeated_interval([0.5, 0.6], maximum=1_000).ends is None


def test_wrong_looks_are_errors():
    values = [0.1, 0.2, 0.3]
    for wrong in (
        {"maximum": 2},
        {"maximum": 1},
        {"maximum": 5000},
        {"looks": [4]},
        {"looks": [-1]},
        {"level": 0.0},
        {"level": 1.0},
    ):
        with pytest.raises(UserError, match="a look needs a maximum"):
            decide(values, 1.0, **({"maximum": 10} | wrong))
    with pytest.raises(UserError, match="above 0"):
        decide(values, 0.0, maximum=10)
