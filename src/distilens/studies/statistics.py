"""Statistics over seeds: means with intervals, differences with p-values and effect sizes, and Holm's adjustment.

SciPy and statsmodels compute everything; they are imported only to compute. How many seeds are enough: `enough_seeds.py`. Shares
of successes have Wilson's interval: `distilens.foundation.estimate.share_from`.

A value that is None, NaN or infinite is that of a run that diverged or did not finish. It is left out and counted as `empty`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from distilens.foundation import estimate as estimates
from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate, share_apart

LEVEL = 0.95
"""The probability that an interval contains the true value."""
ERROR = 1 - LEVEL
BOOTSTRAPPED = 10
"""From this number of values on, the interval of a mean is a bootstrap interval."""
RESAMPLES = 9_999
CLEAR = 300.0
"""Beyond this |t| the ends of an effect's interval are proportional to t (to five digits), and SciPy needs long to find them."""
ROUNDING = 1e-9
"""Values whose range is at most this share of their size are equal."""

Values = Mapping[Any, float | None] | Sequence[float | None] | np.ndarray
"""One number per seed: by seed, or in a sequence."""


@dataclass(frozen=True)
class Difference:
    """The difference of two rows of a study, ours minus theirs, in the unit of the values.

    Attributes:
        estimate: the mean difference with its 95 % interval; n is the number of pairs, or of values on both sides.
        p: the two-sided p-value of the test; None if it cannot be computed.
        check: the p-value of a test by ranks (Wilcoxon's signed-rank test for pairs, Mann-Whitney otherwise). None if even the
            clearest order of so few values would not reach 0.05: below 6 pairs, or for instance below 4 values on each side.
        effect: the difference in standard deviations, with its interval: Cohen's d of the paired differences, or Hedges' g.
        test: the name of the test: `paired t`, `Welch` or `McNemar`.
        seeds: the number of values of ours and of theirs.
        deviation: the standard deviation of the paired differences, or of the values on both sides (the root of the mean
            variance); None below two values.
    """

    estimate: Estimate
    p: float | None
    check: float | None
    effect: Estimate
    test: str
    seeds: tuple[int, int]
    deviation: float | None = None

    @property
    def paired(self) -> bool:
        """Whether each value of ours was compared with a value of theirs."""
        return self.test != "Welch"

    def plain(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {
            **self.estimate.plain(),
            "p": self.p,
            "check": self.check,
            "effect": self.effect.plain("value"),
            "test": self.test,
            "seeds": list(self.seeds),
            "deviation": self.deviation,
        }

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Difference:
        """The difference that a file holds as `plain` gives it."""
        estimate = Estimate.read(entry) or Estimate(None, n=entry["n"], empty=entry.get("empty"))
        effect = Estimate.read(entry["effect"]) or Estimate(None)
        ours, theirs = entry["seeds"]
        return cls(estimate, entry["p"], entry["check"], effect, entry["test"], (ours, theirs), entry["deviation"])


# ------------------------------------------------------------------------------------------------ one row


def mean_over_seeds(values: Values) -> Estimate:
    """The mean with its 95 % interval.

    Fewer than 10 values: Student's t, `mean ± t(n - 1) s / √n`, which is exact for normal values. From 10 values on: the
    bias-corrected and accelerated bootstrap (Efron 1987), which also follows skewed values. Its resamples vary too
    little by `√((n - 1) / n)` and its quantiles are normal ones, so its level is raised as Hesterberg 2015 proposes (The American
    Statistician 69: 371-386). The same values always give the same interval. Equal values have an interval of length 0, a single
    value has none.
    """
    numbers, empty = sort_out(values)
    numbers = np.sort(numbers)  # the order of the seeds must not matter
    n = len(numbers)
    if n < 2:
        return Estimate(float(numbers[0]) if n else None, n=n, empty=empty)
    ends = t_ends(numbers) if n < BOOTSTRAPPED or are_equal(numbers, largest(numbers)) else bootstrap_ends(numbers)
    return Estimate(float(numbers.mean()), *ends, n, empty)


def t_ends(numbers: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The ends of Student's interval of the mean."""
    from statsmodels.stats.weightstats import DescrStatsW

    low, high = DescrStatsW(numbers).tconfint_mean(ERROR)
    return float(low), float(high)


def bootstrap_ends(numbers: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The ends of the bootstrap interval of the mean; those of `t_ends` if the bootstrap has none."""
    from scipy import stats

    n = len(numbers)
    level = 1 - 2 * float(stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.isf(ERROR / 2, n - 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (numbers,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=level,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
    ends = float(found.low), float(found.high)
    return ends if all(map(math.isfinite, ends)) else t_ends(numbers)


# ------------------------------------------------------------------------------------------------ two rows


def compare_seeds(ours: Values, theirs: Values, *, paired: bool) -> Difference:
    """Test whether ours differ from theirs.

    Paired: the t test of the differences, for seeds that share subset, initialisation and order. Mappings are paired by their
    common seeds, sequences by position; a pair with a missing value is left out. Unpaired: Welch's t test, which allows different
    variances.

    Degenerate values: with fewer than two pairs, or fewer than two values on one side, there is no interval, no p and no effect
    size. If all differences are equal (unpaired: all values of each side), there is no spread to test against: the interval has
    length 0, `effect` is empty, and p is 1 for a difference of 0, else None.

    Args:
        ours: numbers by seed, or in a sequence.
        theirs: those that ours are compared with.
        paired: whether the same seeds make pairs.

    Raises:
        UserError: a mapping and a sequence, or sequences of different lengths, cannot be paired.
    """
    return compare_pairs(*pair_up(ours, theirs)) if paired else compare_groups(ours, theirs)


def pair_up(ours: Values, theirs: Values) -> tuple[Values, Values]:
    """The values of both sides in the same order of seeds."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        seeds = [seed for seed in ours if seed in theirs]
        return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    if isinstance(ours, Mapping) or isinstance(theirs, Mapping):
        raise UserError(
            "pairs need two mappings from seed to value, or two sequences in the same order; given one of each"
        )
    if len(ours) != len(theirs):
        raise UserError(
            f"pairs need as many values on both sides; given {len(ours)} and {len(theirs)}. Mappings from seed to value are "
            "paired by their common seeds"
        )
    return ours, theirs


def compare_pairs(ours: Values, theirs: Values) -> Difference:
    """The paired t test."""
    from scipy import stats
    from statsmodels.stats.weightstats import DescrStatsW

    one, other = as_numbers(ours), as_numbers(theirs)
    differences, empty = sort_out(one - other)
    n = len(differences)
    if n < 2:
        return untested(float(differences[0]) if n else None, "paired t", (n, n), n, empty)
    size = largest(one, other)
    if are_equal(differences, size):
        return without_spread(float(differences.mean()), size, "paired t", (n, n), n, empty)
    described: Any = DescrStatsW(differences, ddof=1)
    t, p, freedom = described.ttest_mean()
    low, high = described.tconfint_mean(ERROR)
    ranked: Any = stats.wilcoxon(differences) if 2 / 2**n < ERROR else None
    return Difference(
        Estimate(float(differences.mean()), float(low), float(high), n, empty),
        float(p),
        None if ranked is None else float(ranked.pvalue),
        effect_size(float(t), freedom, math.sqrt(1 / n), 1, n),
        "paired t",
        (n, n),
        float(described.std),
    )


def compare_groups(ours: Values, theirs: Values) -> Difference:
    """Welch's t test."""
    from scipy import stats
    from statsmodels.stats.weightstats import DescrStatsW

    (one, first), (other, second) = sort_out(ours), sort_out(theirs)
    empty = (first or 0) + (second or 0) or None
    n = len(one), len(other)
    if min(n) < 2:
        mean = float(one.mean() - other.mean()) if min(n) else None
        return untested(mean, "Welch", n, sum(n), empty)
    size = largest(one, other)
    if are_equal(one, size) and are_equal(other, size):
        return without_spread(float(one.mean() - other.mean()), size, "Welch", n, sum(n), empty)
    check = float(stats.mannwhitneyu(one, other).pvalue) if 2 / math.comb(sum(n), n[0]) < ERROR else None
    return welch(DescrStatsW(one), DescrStatsW(other), check, empty)


def compare_summaries(
    mean: float, deviation: float, n: int, other_mean: float, other_deviation: float, other_n: int
) -> Difference:
    """Welch's t test from the means, the standard deviations (n - 1) and the numbers of seeds that a paper gives.

    It is `compare_seeds` without pairs, without the check by ranks.

    Raises:
        UserError: a deviation is negative or not finite, or a number of seeds is below 1.
    """
    from statsmodels.stats.weightstats import DescrStatsW

    sides = (mean, deviation, n), (other_mean, other_deviation, other_n)
    for _, spread, count in sides:
        if not (math.isfinite(spread) and spread >= 0 and count >= 1):
            raise UserError(
                f"a summary needs a deviation of at least 0 and n of at least 1; given {spread} and {count}"
            )
    counts = n, other_n
    if min(counts) < 2:
        return untested(mean - other_mean, "Welch", counts, sum(counts), None)
    if not (deviation or other_deviation):
        return without_spread(mean - other_mean, abs(mean), "Welch", counts, sum(counts), None)
    # two values of weight n / 2 that have this mean and this deviation: the test depends on nothing else
    described = [
        DescrStatsW(centre + spread * math.sqrt((count - 1) / count) * np.array([-1, 1]), [count / 2, count / 2])
        for centre, spread, count in sides
    ]
    return welch(described[0], described[1], None, None)


def welch(ours: Any, theirs: Any, check: float | None, empty: int | None) -> Difference:
    """Welch's t test of two statsmodels descriptions (`DescrStatsW`)."""
    from statsmodels.stats.meta_analysis import effectsize_smd
    from statsmodels.stats.weightstats import CompareMeans

    compared = CompareMeans(ours, theirs)
    _, p, _ = compared.ttest_ind(usevar="unequal")
    pooled, _, freedom = compared.ttest_ind(usevar="pooled")
    n = round(ours.nobs), round(theirs.nobs)
    correction, _ = effectsize_smd(1.0, 1.0, n[0], 0.0, 1.0, n[1])  # Hedges' g of a difference of one deviation
    low, high = compared.tconfint_diff(ERROR, usevar="unequal")
    return Difference(
        Estimate(float(ours.mean - theirs.mean), float(low), float(high), sum(n), empty),
        float(p),
        check,
        effect_size(float(pooled), freedom, math.sqrt(1 / n[0] + 1 / n[1]), float(correction), sum(n)),
        "Welch",
        n,
        math.sqrt((ours.var_ddof(1) + theirs.var_ddof(1)) / 2),
    )


def effect_size(t: float, freedom: float, scale: float, correction: float, n: int) -> Estimate:
    """A standardised difference `t · scale · correction`, with the exact interval of the noncentral t distribution.

    The interval holds the effects under which a t at least as extreme has a probability of 0.025 or more on each side (Steiger &
    Fouladi 1997). Hedges' g and its interval suppose equal variances.
    """
    from scipy.special import nctdtrinc

    bounded = max(-CLEAR, min(CLEAR, t))
    unit = scale * correction * (t / bounded if t else 1)
    low, high = (float(nctdtrinc(freedom, share, bounded)) * unit for share in (1 - ERROR / 2, ERROR / 2))
    return Estimate(bounded * unit, low, high, n)


def mcnemar(first_right: Any, second_right: Any) -> Difference:
    """Compare two models on the same test images: the difference of their accuracies, and McNemar's exact p-value.

    Only images on which exactly one model is right count for the test: their number on one side is binomial with 1/2. Source:
    McNemar 1947. The interval is Newcombe's (`distilens.foundation.estimate.share_apart`), the difference is in [-1, 1].

    Args:
        first_right: `[n]` booleans, whether the first model classifies each image correctly.
        second_right: the same for the second model.

    Raises:
        UserError: there are no images, or the lengths differ.
    """
    one, other = (np.asarray(right, dtype=bool) for right in (first_right, second_right))
    estimate = share_apart(one, other) if one.shape == other.shape else None
    if estimate is None:
        raise UserError(
            f"McNemar's test needs the same images for both models; given {len(one)} and {len(other)} outcomes"
        )
    p = estimates.mcnemar(one, other)["p"]
    return Difference(estimate, p, None, Estimate(None), "McNemar", (len(one), len(other)))


# ------------------------------------------------------------------------------------------------ many rows


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """p-values adjusted for their number by Holm's method (Holm 1979), which keeps the family-wise error.

    None and NaN stay None, and do not count.
    """
    from statsmodels.stats.multitest import multipletests

    known = {name: p for name, p in p_values.items() if p is not None and not math.isnan(p)}
    adjusted = np.asarray(multipletests(list(known.values()), method="holm")[1]) if known else np.empty(0)
    return {**dict.fromkeys(p_values), **dict(zip(known, adjusted.tolist(), strict=True))}


# ------------------------------------------------------------------------------------------------ values


def as_numbers(values: Values) -> Float[np.ndarray, " n"]:
    """The values as float64; what is missing or infinite becomes NaN."""
    numbers = np.array(list(values.values() if isinstance(values, Mapping) else values), dtype=np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def sort_out(values: Values) -> tuple[Float[np.ndarray, " n"], int | None]:
    """The finite values, and the number of others (None for no others)."""
    numbers = as_numbers(values)
    missing = np.isnan(numbers)
    return numbers[~missing], int(missing.sum()) or None


def largest(*sides: Float[np.ndarray, " _"]) -> float:
    """The largest magnitude of several sides; NaN does not count."""
    return float(np.nanmax(abs(np.concatenate(sides))))


def are_equal(numbers: Float[np.ndarray, " n"], size: float) -> bool:
    """Whether values are equal up to rounding; `size` is the magnitude of the numbers that they were computed from."""
    return bool(np.ptp(numbers) <= ROUNDING * size)


def untested(mean: float | None, test: str, seeds: tuple[int, int], n: int, empty: int | None) -> Difference:
    """A difference of too few values for a test."""
    return Difference(Estimate(mean, n=n, empty=empty), None, None, Estimate(None), test, seeds)


def without_spread(
    mean: float, size: float, test: str, seeds: tuple[int, int], n: int, empty: int | None
) -> Difference:
    """A difference without any spread: a test would divide by 0."""
    p = 1.0 if abs(mean) <= ROUNDING * size else None
    return Difference(Estimate(mean, mean, mean, n, empty), p, None, Estimate(None), test, seeds, 0.0)
