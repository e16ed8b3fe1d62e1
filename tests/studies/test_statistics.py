"""Statistics over seeds: nominal coverage by simulation, agreement with SciPy and statsmodels, and degenerate values.

A coverage is measured in 2,000 simulated studies, whose standard error is 0.5 points; 1.5 points (three of them) are tolerated.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as exact_test
from statsmodels.stats.meta_analysis import effectsize_smd
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate, share_from
from distilens.studies import statistics
from distilens.studies.statistics import Difference, compare_seeds, compare_summaries, holm, mcnemar, mean_over_seeds

STUDIES, TOLERATED = 2_000, 0.015
OURS, THEIRS = [91.2, 90.8, 91.9, 91.4, 90.7, 91.6], [90.9, 90.1, 91.2, 91.3, 90.8, 90.4]

# mean and standard deviation over 10 runs, and Welch's p against the student and against KD, as the table was published
PUBLISHED = {
    "Student": (91.18, 0.31, None, 0.019),
    "KD": (91.62, 0.44, 0.019, None),
    "IG": (91.35, 0.32, 0.25, 0.13),
    "KD+IG": (92.02, 0.34, 2e-5, 0.037),
    "AT": (91.16, 0.32, 0.88, 0.016),
    "KD+AT": (91.75, 0.29, 5e-4, 0.46),
    "IG+AT": (91.47, 0.24, 0.034, 0.33),
    "KD+IG+AT": (91.86, 0.28, 7e-5, 0.17),
}


def covered(truth: float, intervals: list[Estimate]) -> float:
    return float(np.mean([interval.holds(truth) for interval in intervals]))


@pytest.fixture
def unchecked(monkeypatch):
    """Without the tests by ranks, which take most of the time of a comparison."""
    for name in ("wilcoxon", "mannwhitneyu"):
        monkeypatch.setattr(stats, name, lambda *values: stats.ttest_1samp([0.0, 1.0], 0.0))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# ------------------------------------------------------------------------------------------------ one row


@pytest.mark.parametrize("n", [3, 5, pytest.param(10, marks=pytest.mark.slow)])
def test_the_interval_of_a_mean_holds_in_95_percent_of_the_studies(n, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    assert abs(covered(90, [mean_over_seeds(90 + values) for values in draw(STUDIES, n, seed=n)]) - 0.95) < TOLERATED


def test_the_bootstrap_is_better_than_t_on_skewed_values(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    studies = np.random.default_rng(1).exponential(size=(1_000, 10))
    ours = covered(1, [mean_over_seeds(values) for values in studies])
    theirs = covered(1, [Estimate(0, *statistics.t_ends(values)) for values in studies])
    assert ours > theirs + 0.01
    assert ours > 0.9


def test_a_mean_of_few_is_students():
    found = mean_over_seeds(OURS)
    expected = stats.ttest_1samp(OURS, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(OURS))
    assert found.ends == pytest.approx((expected.low, expected.high))
    assert found.n == 6


def test_a_mean_of_many_is_a_bootstrap_that_repeats_and_ignores_the_order():
    values = np.random.default_rng(0).exponential(size=12)
    found = mean_over_seeds(values)
    assert found == mean_over_seeds(values[::-1].tolist()) == mean_over_seeds(dict(enumerate(values)))
    assert found.ends != pytest.approx(statistics.t_ends(values), rel=0.01)
    low, high = found.ends
    assert high - found.value > found.value - low  # it follows the long tail
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 99_999)
        assert mean_over_seeds(values).ends == pytest.approx(found.ends, abs=0.05)


@pytest.mark.parametrize("n", [2, 9, 10, 30])
def test_equal_values_have_an_interval_of_length_0(n):
    assert mean_over_seeds([0.1 + 0.2] * n).ends == pytest.approx((0.3, 0.3))


def test_one_value_has_no_interval_and_missing_ones_are_counted():
    assert mean_over_seeds([91.0]) == Estimate(91.0, n=1)
    assert mean_over_seeds([]) == Estimate(None, n=0)
    assert mean_over_seeds([np.nan, None, np.inf]) == Estimate(None, n=0, empty=3)
    assert mean_over_seeds({0: 91.0, 1: np.nan, 2: 93.0, 3: None}) == Estimate(
        92.0, *statistics.t_ends(np.array([91.0, 93])), 2, 2
    )


# ------------------------------------------------------------------------------------------------ two rows


def test_pairs_are_compared_as_scipy_does():
    found, expected = compare_seeds(OURS, THEIRS, paired=True), stats.ttest_rel(OURS, THEIRS)
    interval, differences = expected.confidence_interval(0.95), np.subtract(OURS, THEIRS)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.estimate.ends == pytest.approx((interval.low, interval.high))
    assert found.check == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert found.deviation == pytest.approx(differences.std(ddof=1))
    assert found.effect.value == pytest.approx(differences.mean() / differences.std(ddof=1))
    low, high = found.effect.ends
    assert stats.nct.sf(expected.statistic, 5, low * 6**0.5) == pytest.approx(0.025, abs=1e-6)
    assert stats.nct.cdf(expected.statistic, 5, high * 6**0.5) == pytest.approx(0.025, abs=1e-6)
    assert (found.test, found.seeds, found.paired, found.estimate.n) == ("paired t", (6, 6), True, 6)


def test_groups_are_compared_as_scipy_does():
    found, expected = compare_seeds(OURS, THEIRS[:5], paired=False), stats.ttest_ind(OURS, THEIRS[:5], equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.estimate.ends == pytest.approx((interval.low, interval.high))
    assert found.check == pytest.approx(stats.mannwhitneyu(OURS, THEIRS[:5]).pvalue)
    one, other = np.array(OURS), np.array(THEIRS[:5])
    g, _ = effectsize_smd(one.mean(), one.std(ddof=1), 6, other.mean(), other.std(ddof=1), 5)
    assert found.effect.value == pytest.approx(g)
    assert found.effect.holds(float(g))
    assert (found.test, found.seeds, found.paired, found.estimate.n) == ("Welch", (6, 5), False, 11)


def test_the_other_way_round_everything_has_the_other_sign():
    for paired in (True, False):
        there, back = compare_seeds(OURS, THEIRS, paired=paired), compare_seeds(THEIRS, OURS, paired=paired)
        assert back.p == pytest.approx(there.p)
        for one, other in ((there.estimate, back.estimate), (there.effect, back.effect)):
            assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


def test_mappings_are_paired_by_their_common_seeds():
    ours, theirs = dict(enumerate(OURS)), dict(reversed(list(enumerate(THEIRS))))
    assert compare_seeds(ours | {17: 50.0}, theirs | {18: 99.0}, paired=True) == compare_seeds(
        OURS, THEIRS, paired=True
    )
    assert compare_seeds(ours, {100 + seed: value for seed, value in theirs.items()}, paired=True).estimate == Estimate(
        None, n=0
    )
    with pytest.raises(UserError, match="one of each"):
        compare_seeds(ours, THEIRS, paired=True)
    with pytest.raises(UserError, match="given 6 and 5"):
        compare_seeds(OURS, THEIRS[:5], paired=True)


@pytest.mark.parametrize("n", [3, 5, pytest.param(10, marks=pytest.mark.slow)])
def test_the_intervals_of_pairs_hold_in_95_percent_of_the_studies(n, unchecked):
    studies = 0.5 + draw(STUDIES, n, seed=n)
    found = [compare_seeds(values, np.zeros(n), paired=True) for values in studies]
    assert abs(covered(0.5, [one.estimate for one in found]) - 0.95) < TOLERATED
    assert abs(covered(0.5, [one.effect for one in found]) - 0.95) < TOLERATED


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m", "deviation"), [(5, 5, 1), (5, 10, 2)])
def test_the_intervals_of_groups_hold_in_95_percent_of_the_studies(n, m, deviation, unchecked):
    ours, theirs = deviation * draw(STUDIES, n, seed=1), draw(STUDIES, m, seed=2)
    found = [compare_seeds(0.5 + one, other, paired=False) for one, other in zip(ours, theirs, strict=True)]
    assert abs(covered(0.5, [one.estimate for one in found]) - 0.95) < TOLERATED
    if deviation == 1:
        correction, _ = effectsize_smd(1, 1, n, 0, 1, m)
        assert abs(covered(0.5 * float(correction), [one.effect for one in found]) - 0.95) < TOLERATED


def test_with_three_values_a_side_welch_errs_on_the_safe_side():
    ours, theirs = draw(STUDIES, 3, seed=1), draw(STUDIES, 3, seed=2)
    found = [compare_seeds(one, other, paired=False) for one, other in zip(ours, theirs, strict=True)]
    assert 0.95 - TOLERATED < covered(0, [one.estimate for one in found]) < 0.99


def test_too_few_for_a_check_by_ranks():
    assert compare_seeds(OURS[:5], THEIRS[:5], paired=True).check is None
    assert compare_seeds(OURS, THEIRS, paired=True).check is not None
    assert compare_seeds(OURS[:3], THEIRS[:4], paired=False).check is None
    assert compare_seeds(OURS[:4], THEIRS[:4], paired=False).check is not None
    clearest = compare_seeds([5, 6, 7, 8], [1, 2, 3, 4.5], paired=False)
    assert clearest.check < 0.05


def test_differences_of_0_and_ties_are_ranked_without_a_warning():
    found = compare_seeds([1.0, 2.0, 3.0, 5.0, 6.0, 8.0, 9.0], [1.0, 1.0, 2.0, 4.0, 5.0, 5.0, 9.0], paired=True)
    assert found.check == pytest.approx(stats.wilcoxon([0, 1, 1, 1, 1, 3, 0]).pvalue)
    assert compare_seeds([1.0] * 5 + [2.0], [1.0] * 6, paired=True).check > 0.3
    assert compare_seeds([1.0] * 5 + [2.0], [1.0] * 4, paired=False).check > 0.3


def test_infinite_values_on_both_sides_are_missing():
    found = compare_seeds([*OURS, np.inf], [*THEIRS, np.inf], paired=True)
    assert (found.p, found.estimate.empty) == (compare_seeds(OURS, THEIRS, paired=True).p, 1)


@pytest.mark.parametrize("paired", [True, False])
def test_fewer_than_two_have_no_test(paired):
    found = compare_seeds([91.0], [90.0], paired=paired)
    assert (found.estimate.value, found.estimate.ends, found.p, found.check, found.deviation) == (
        1.0,
        None,
        None,
        None,
        None,
    )
    assert found.effect == Estimate(None)
    assert compare_seeds([], [], paired=paired).estimate == Estimate(None, n=0)
    assert compare_seeds([None, np.nan], [1.0, 2.0], paired=paired).p is None


@pytest.mark.parametrize("paired", [True, False])
def test_equal_values_have_p_1_and_equal_differences_none(paired):
    same = compare_seeds([90.1] * 5, [90.1] * 5, paired=paired)
    assert (same.estimate.value, same.estimate.ends, same.p, same.deviation) == (0.0, (0.0, 0.0), 1.0, 0.0)
    shifted = compare_seeds([90.1] * 5, [90.0] * 5, paired=paired)
    assert shifted.estimate.ends == pytest.approx((0.1, 0.1))
    assert (shifted.p, shifted.check, shifted.effect) == (None, None, Estimate(None))


def test_differences_that_are_equal_up_to_rounding_are_equal():
    theirs = np.array([0.3, 64.7, 90.1])
    assert np.ptp(theirs + 0.1 - theirs) > 0
    assert compare_seeds(theirs + 0.1, theirs, paired=True).p is None


def test_a_diverged_run_is_left_out_with_its_partner():
    whole = compare_seeds(OURS, THEIRS, paired=True)
    found = compare_seeds([*OURS, np.nan, 91.0], [*THEIRS, 90.0, None], paired=True)
    assert (found.p, found.estimate.ends, found.seeds) == (whole.p, whole.estimate.ends, (6, 6))
    assert (found.estimate.n, found.estimate.empty) == (6, 2)
    groups = compare_seeds([*OURS, np.nan], [*THEIRS, np.inf], paired=False)
    assert (groups.p, groups.estimate.empty) == (compare_seeds(OURS, THEIRS, paired=False).p, 2)


def test_a_side_without_spread_is_still_compared():
    assert compare_seeds([90.0] * 4, THEIRS, paired=False).p == pytest.approx(stats.ttest_1samp(THEIRS, 90).pvalue)


def test_a_difference_far_beyond_its_spread_has_an_effect_with_an_interval():
    found = compare_seeds([91.0, 92.0, 93.0001], [1.0, 2.0, 3.0], paired=True)
    low, high = found.effect.ends
    assert 1e5 < low < found.effect.value < high
    assert found.effect.value == pytest.approx(found.estimate.value / found.deviation)


@pytest.mark.parametrize("paired", [True, False])
def test_a_difference_is_read_as_it_was_written(paired):
    for found in (
        compare_seeds(OURS, THEIRS, paired=paired),
        compare_seeds([1.0, None], [2.0, 3.0], paired=paired),
        compare_seeds([], [], paired=paired),
    ):
        assert Difference.read(json.loads(json.dumps(found.plain(), allow_nan=False))) == found


# ------------------------------------------------------------------------------------------------ summaries


@pytest.mark.parametrize(("against", "column"), [("Student", 2), ("KD", 3)])
def test_the_p_values_of_a_published_table_come_out_to_rounding(against, column):
    """Means and deviations have two decimals there, so each p-value lies between those of the nearest and the farthest values."""
    mean, deviation, *_ = PUBLISHED[against]
    for name, entry in PUBLISHED.items():
        if entry[column] is None:
            continue
        found = compare_summaries(*entry[:2], 10, mean, deviation, 10)
        expected = stats.ttest_ind_from_stats(*entry[:2], 10, mean, deviation, 10, equal_var=False)
        assert found.p == pytest.approx(expected.pvalue), name
        apart, rounded = abs(entry[0] - mean), 0.01
        lowest, highest = (
            compare_summaries(apart + sign * rounded, entry[1] - sign * 0.005, 10, 0.0, deviation - sign * 0.005, 10).p
            for sign in (1, -1)
        )
        digit = 10 ** np.floor(np.log10(entry[column]))  # the last digit that is printed, at least
        assert lowest - digit / 2 <= entry[column] <= highest + digit / 2, name


def test_summaries_give_what_their_values_give():
    ours, theirs = np.array(OURS), np.array(THEIRS[:5])
    found = compare_summaries(ours.mean(), ours.std(ddof=1), 6, theirs.mean(), theirs.std(ddof=1), 5)
    expected = compare_seeds(OURS, THEIRS[:5], paired=False)
    assert found.check is None
    assert (found.p, found.deviation) == pytest.approx((expected.p, expected.deviation))
    assert found.estimate.ends == pytest.approx(expected.estimate.ends)
    assert found.effect.ends == pytest.approx(expected.effect.ends)
    assert found.seeds == (6, 5)


def test_summaries_of_one_or_without_spread():
    assert compare_summaries(91, 0, 1, 90, 0.3, 10).p is None
    assert compare_summaries(91, 0, 5, 90, 0, 5).p is None
    assert compare_summaries(91, 0, 5, 91, 0, 5).p == 1
    assert compare_summaries(91, 0, 5, 90, 0.3, 10).p < 0.001
    for wrong in ((91, -0.1, 5, 90, 0.3, 5), (91, 0.1, 0, 90, 0.3, 5), (91, np.nan, 5, 90, 0.3, 5)):
        with pytest.raises(UserError, match="at least 0 and n of at least 1"):
            compare_summaries(*wrong)


# ------------------------------------------------------------------------------------------------ test images, many rows


def test_mcnemar_counts_the_images_on_which_one_model_alone_is_right():
    one = [True] * 60 + [True] * 15 + [False] * 5 + [False] * 20
    other = [True] * 60 + [False] * 15 + [True] * 5 + [False] * 20
    found = mcnemar(one, other)
    assert found.p == pytest.approx(exact_test([[60, 15], [5, 20]], exact=True).pvalue)
    assert found.p == pytest.approx(stats.binomtest(5, 20).pvalue)
    assert found.estimate.value == pytest.approx(0.1)
    assert found.estimate.above(0)
    assert (found.seeds, found.check, found.test) == ((100, 100), None, "McNemar")
    assert mcnemar(one, one).p == 1
    assert Difference.read(json.loads(json.dumps(found.plain()))) == found
    for wrong in (([], []), ([True], [True, False])):
        with pytest.raises(UserError, match="the same images"):
            mcnemar(*wrong)


@pytest.mark.slow
def test_mcnemar_rejects_at_most_5_percent_of_equal_models():
    random = np.random.default_rng(0)
    right, changed, again = (random.random((500, 200)) < share for share in (0.8, 0.1, 0.8))
    other = np.where(changed, again, right)
    assert np.mean([mcnemar(a, b).p < 0.05 for a, b in zip(right, other, strict=True)]) <= 0.05


@pytest.mark.slow
def test_the_interval_of_a_share_holds_in_about_95_percent_of_the_studies():
    """Wilson's coverage swings around 95 % with n and the share: its mean over shares is tested."""
    random = np.random.default_rng(0)
    shares = random.uniform(0.05, 0.95, STUDIES)
    counts = random.binomial(20, shares)
    held = [share_from(count, 20).holds(share) for count, share in zip(counts.tolist(), shares.tolist(), strict=True)]
    assert abs(np.mean(held) - 0.95) < TOLERATED


def test_holm_adjusts_as_published_and_leaves_missing_ones_alone():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.02, "b": None, "c": float("nan")}) == {"a": 0.02, "b": None, "c": None}
    assert list(holm({"b": 0.9, "a": 0.8})) == ["b", "a"]
    assert holm({}) == {}
    assert holm({"a": None}) == {"a": None}


def test_the_statistics_need_no_torch():
    code = (
        "import sys\n"
        "from distilens.studies import enough_seeds, statistics\n"
        "assert 'scipy' not in sys.modules\n"
        "difference = statistics.compare_seeds([1.0, 2.0, 4.0], [1.0, 1.5, 2.0], paired=True)\n"
        "enough_seeds.more_seeds(difference, 1.0)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_welch_agrees_with_statsmodels():
    expected = CompareMeans(DescrStatsW(OURS), DescrStatsW(THEIRS)).tconfint_diff(usevar="unequal")
    assert compare_seeds(OURS, THEIRS, paired=False).estimate.ends == pytest.approx(expected)
