"""How many seeds are enough? The number that a difference of a given size needs, and a rule to stop adding seeds.

A test after every new seed finds differences that are not there far too often. `decide` may look after every seed. It uses
repeated confidence intervals (Jennison & Turnbull 1989, J. R. Statist. Soc. B 51: 305-361): at each look a t interval of the
paired differences, wider than 95 %, such that all looks together contain the true difference with a probability of 95 %. So every
decision that is read off them is wrong in at most 5 % of the studies, whenever one stops and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np

from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate
from distilens.studies.statistics import ERROR, ROUNDING, Difference, sort_out

MOST_SEEDS = 1_000
"""A difference that needs more seeds than this counts as out of reach."""
NULL_STUDIES = 200_000
"""Simulated studies without a difference, from which the levels of the looks are computed."""

Decision = Literal["better", "worse", "no difference of that size", "undecided"]


def seeds_needed(
    spread: Difference | float | None,
    points: float,
    *,
    paired: bool = True,
    power: float = 0.8,
    level: float = ERROR,
) -> int | None:
    """The number of seeds with which a t test finds a true difference of this size; on each side, if they are not paired.

    It is the smallest n from 2 to 1,000 at which the two-sided t test has the power; None above 1,000, or if the deviation is
    unknown. The deviation that was seen is taken as the true one: after few seeds, the number is only a guide.

    Args:
        spread: a difference that was measured, or the standard deviation of the paired differences (unpaired: of the values).
        points: the size of the difference, above 0, in the unit of the values.
        paired: only for a given deviation; a measured difference knows it.
        power: the probability of a p-value below `level` if the difference is real, in (0, 1).
        level: the significance level, in (0, 1).

    Raises:
        UserError: a value is out of its range, or the difference is that of two models on test images.
    """
    from statsmodels.stats.power import TTestIndPower, TTestPower

    if isinstance(spread, Difference):
        if spread.test == "McNemar":
            raise UserError("more seeds are for a difference over seeds, but this one is over test images (McNemar)")
        spread, paired = spread.deviation, spread.paired
    if not (points > 0 and 0 < power < 1 and 0 < level < 1 and (spread is None or spread >= 0)):
        raise UserError(
            "the number of seeds needs points above 0, power and level between 0 and 1, and a deviation of at least 0; given "
            f"points={points}, power={power}, level={level}, deviation={spread}"
        )
    if spread is None:
        return None
    if spread <= ROUNDING * points:
        return 2
    counts = np.arange(2, MOST_SEEDS + 1)
    test = TTestPower() if paired else TTestIndPower()
    enough = np.flatnonzero(test.power(points / spread, counts, level) >= power)
    return int(counts[enough[0]]) if len(enough) else None


def more_seeds(difference: Difference, points: float, *, power: float = 0.8, level: float = ERROR) -> int | None:
    """How many seeds are missing on the smaller side to find a true difference of this size; None as `seeds_needed`."""
    needed = seeds_needed(difference, points, power=power, level=level)
    return None if needed is None else max(0, needed - min(difference.seeds))


# ------------------------------------------------------------------------------------------------ adding seeds


def decide(
    differences: Sequence[float | None] | np.ndarray,
    points: float,
    *,
    looks: Sequence[int] = (),
    maximum: int,
    level: float = ERROR,
) -> Decision:
    """Whether the paired differences so far settle a question, such that looking after each seed keeps the error.

    * `better`, `worse`: the repeated interval is above, or below, 0.
    * `no difference of that size`: it is inside (-points, points).
    * `undecided`: add a seed, or stop at `maximum` with this result.

    The probability that any look of a study gives a false decision is at most `level`, for normal differences. It holds per
    comparison: for m comparisons give `level / m`.

    Args:
        differences: ours minus theirs, one per seed so far, in the order of the seeds. None and NaN (a run that diverged) are
            left out and do not count as seeds.
        points: the smallest difference that matters, above 0, in the unit of the differences.
        looks: the numbers of (finite) differences at the earlier looks. The present look need not be among them.
        maximum: the planned largest number of seeds, from 2 to 1,000; it must not depend on what was seen.
        level: the probability of a false decision, in (0, 1).

    Raises:
        UserError: a value is out of its range, there are more differences than `maximum`, or a look at more seeds than there are.
    """
    if not points > 0:
        raise UserError(f"the smallest difference that matters must be above 0; given {points}")
    interval = repeated_interval(differences, looks=looks, maximum=maximum, level=level)
    if interval.above(0):
        return "better"
    if interval.below(0):
        return "worse"
    return "no difference of that size" if interval.above(-points) and interval.below(points) else "undecided"


def repeated_interval(
    differences: Sequence[float | None] | np.ndarray,
    *,
    looks: Sequence[int] = (),
    maximum: int,
    level: float = ERROR,
) -> Estimate:
    """The mean of the paired differences with its interval at this look: all looks' intervals together hold with 1 - level.

    `mean ± t(n - 1; 1 - a / 2) s / √n`, where a is the level of this look (`levels_of_looks`). It has no interval below two
    differences, if all are equal, and if nothing may be spent yet (far below 1 % of the planned seeds). Arguments and errors as
    in `decide`.
    """
    from scipy.special import stdtrit  # the quantile of t, much faster than that of scipy.stats

    numbers, empty = sort_out(differences)
    n, earlier = len(numbers), sorted(set(looks) - {0, 1})
    if not (2 <= maximum <= MOST_SEEDS and n <= maximum and 0 < level < 1 and all(2 <= look <= n for look in earlier)):
        raise UserError(
            f"a look needs a maximum from 2 to {MOST_SEEDS:,}, at most that many differences, earlier looks at no more than "
            f"these, and a level between 0 and 1; given maximum={maximum}, {n} differences, looks={list(looks)}, level={level}"
        )
    mean = float(numbers.mean()) if n else None
    if mean is None or n < 2 or np.ptp(numbers) <= ROUNDING * abs(numbers).max():
        return Estimate(mean, n=n, empty=empty)
    own = levels_of_looks((*(look for look in earlier if look < n), n), maximum, level)[-1]
    half = -float(stdtrit(n - 1, own / 2)) * float(numbers.std(ddof=1)) / math.sqrt(n)
    ends = (mean - half, mean + half) if math.isfinite(half) else (None, None)
    return Estimate(mean, *ends, n, empty)


def spent(share: float, level: float = ERROR) -> float:
    """The error that may be spent when a share in (0, 1] of the planned seeds is there: `2 - 2 Φ(z / √share)`.

    z is the normal quantile of `1 - level / 2`. Source: Lan & DeMets 1983 (Biometrika 70: 659-663), the function that is like the
    boundaries of O'Brien & Fleming: almost nothing early, nearly all at the planned end.
    """
    from scipy import stats

    return 2 * float(stats.norm.sf(stats.norm.isf(level / 2) / math.sqrt(share)))


@cache
def levels_of_looks(looks: tuple[int, ...], maximum: int, level: float = ERROR) -> tuple[float, ...]:
    """The two-sided level of the t test at each look, at rising numbers of seeds.

    Each look may spend what `spent` has released since the last one. Its level is the one that this share of the studies without
    a difference falls below for the first time, among simulated studies of normal differences (the path of t does not depend on
    their variance; a fixed seed). It is at least what this look may spend, which is always safe.
    """
    from scipy import stats

    random = np.random.default_rng(0)
    totals, squares, seen = np.zeros(NULL_STUDIES), np.zeros(NULL_STUDIES), 0
    undecided, crossed, before, levels = np.ones(NULL_STUDIES, dtype=bool), 0, 0.0, []
    for look in looks:
        for _ in range(look - seen):
            values = random.standard_normal(NULL_STUDIES)
            totals += values
            squares += values * values
        seen, released = look, spent(look / maximum, level)
        t = np.abs(totals) / np.sqrt((look * squares - totals**2) / (look - 1))
        expected = NULL_STUDIES * released
        allowed = int(expected - 2 * math.sqrt(expected)) - crossed  # two standard errors of the simulation below
        rivals = t[undecided]
        bound = np.partition(rivals, -allowed)[-allowed] if allowed > 0 else np.inf
        own = max(2 * float(stats.t.sf(bound, look - 1)), released - before)
        passed = undecided & (t >= stats.t.isf(own / 2, look - 1))
        undecided, crossed, before = undecided & ~passed, crossed + int(passed.sum()), released
        levels.append(own)
    return tuple(levels)
