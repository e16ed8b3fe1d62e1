"""Intervals of a statistic of sums over images, by the percentile bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from distilens.foundation.estimate import Estimate

DRAWS, BLOCK = 2000, 250
"""Draws of the bootstrap, and how many are computed at once."""


def of_sums(
    rows: Float[np.ndarray, "n ..."], statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> Estimate:
    """A statistic of the sum of rows (one per image), with the 2.5 % and 97.5 % percentiles of a bootstrap over the rows.

    Args:
        rows: what is summed: per image, any array of numbers.
        statistic: from sums `[draws *numbers]` to one number per draw; also for a single sum `[*numbers]`. NaN means no value.
        seed: of the 2,000 draws with replacement.

    Source: Efron and Tibshirani 1993, section 13.3.
    """
    count = len(rows)
    value = float(statistic(rows.sum(0))) if count else float("nan")
    if np.isnan(value):
        return Estimate(None, n=count)
    if count < 2:
        return Estimate(value, n=count)
    random = np.random.default_rng(seed)
    flat, drawn = rows.reshape(count, -1), []
    for _ in range(0, DRAWS, BLOCK):
        times = random.multinomial(count, np.full(count, 1 / count), size=BLOCK)
        drawn.append(statistic((times @ flat).reshape(BLOCK, *rows.shape[1:])))
    low, high = np.nanpercentile(np.concatenate(drawn), [2.5, 97.5])
    return Estimate(value, float(low), float(high), count)
