"""A number with its 95 % interval and n: how it is computed, stored and written. Imports torch and SciPy only to compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NOTHING = "–"
"""An en dash, shown where a number is missing."""

NAMES = ("accuracy", "mean", "value")
"""The keys under which the files hold the number of an estimate."""

Write = Callable[[float], str]


def minus(number: str) -> str:
    """A number with a typographic minus instead of a hyphen."""
    return number.replace("-", "−")


def decimals(value: float) -> str:
    """A number with three decimals."""
    return f"{value:.3f}"


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and the number of images (or samples) behind it.

    Attributes:
        value: the number; None if it could not be computed.
        low, high: the ends of the interval; None if there is no interval.
        n: the number of images.
        empty: the number of images that were left out because they have no value.

    >>> print(Estimate(-0.0123, -0.1, 0.0754, 1200))
    −0.012 [−0.100 to 0.075], n = 1,200
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    empty: int | None = None

    @classmethod
    def read(cls, entry: Mapping[str, Any] | None, name: str | None = None) -> Estimate | None:
        """The estimate that a file holds as `plain` gives it; None if there is no number.

        Args:
            entry: the plain data, or None.
            name: the key of the number; by default the first of `accuracy`, `mean` and `value` that is there.
        """
        entry = entry or {}
        value = entry.get(name or next((key for key in NAMES if key in entry), ""))
        return None if value is None else Estimate(value, *(entry.get(key) for key in ("low", "high", "n", "empty")))

    def plain(self, name: str = "mean") -> dict[str, Any]:
        """Plain data for a file, with the number under `name`; without `n` and `empty` if they are None."""
        interval, counts = {"low": self.low, "high": self.high}, {} if self.n is None else {"n": self.n}
        # the order of the keys in existing files
        entry = interval | counts if name == "mean" else counts | interval
        return {name: self.value, **entry, **({} if self.empty is None else {"empty": self.empty})}

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def half(self) -> float | None:
        """Half of the length of the interval, or None."""
        return None if self.ends is None else (self.ends[1] - self.ends[0]) / 2

    @property
    def positive(self) -> bool:
        """Whether the number is above 0."""
        return self.value is not None and self.value > 0

    def holds(self, number: float) -> bool:
        """Whether the interval contains a number. It is False without an interval."""
        return self.ends is not None and self.ends[0] <= number <= self.ends[1]

    def above(self, number: float) -> bool:
        """Whether the whole interval is above a number. It is False without an interval."""
        return self.ends is not None and self.ends[0] > number

    def below(self, number: float) -> bool:
        """Whether the whole interval is below a number. It is False without an interval."""
        return self.ends is not None and self.ends[1] < number

    def overlaps(self, other: Estimate) -> bool:
        """Whether both intervals overlap. It is False if one of the two has no interval."""
        if self.ends is None or other.ends is None:
            return False
        return self.ends[0] <= other.ends[1] and other.ends[0] <= self.ends[1]

    def __str__(self) -> str:
        return self.written()

    def written(self, write: Write = decimals) -> str:
        """`0.512 [0.480 to 0.544], n = 500`."""
        return ", ".join(filter(None, (self.with_interval(write), self.counted)))

    def with_interval(self, write: Write = decimals) -> str:
        """`0.512 [0.480 to 0.544]`."""
        return " ".join(filter(None, (self.number(write), self.interval(write))))

    def with_half(self, write: Write = decimals) -> str:
        """`0.512 ±0.034`: the number and half of its interval."""
        return self.number(write) + ("" if self.half is None else minus(f" ±{write(self.half)}"))

    def number(self, write: Write = decimals) -> str:
        """`0.512`, or a dash."""
        return NOTHING if self.value is None else minus(write(self.value))

    def interval(self, write: Write = decimals) -> str:
        """`[0.480 to 0.544]`, or nothing."""
        return "" if self.ends is None else minus(f"[{write(self.ends[0])} to {write(self.ends[1])}]")

    @property
    def counted(self) -> str:
        """`n = 500`, or nothing."""
        return "" if self.n is None else f"n = {self.n:,}"


# ------------------------------------------------------------------------------------------------ how it is computed


def share_of(hits: Any, level: float = 0.95) -> Estimate:
    """The share of true outcomes, with Wilson's interval, which stays inside [0, 1].

    Args:
        hits: `[n]` booleans: a tensor, an array or a list, at least one.
        level: the probability that the interval contains the share.
    """
    return share_from(int(outcomes(hits).sum()), len(hits), level)


def share_from(count: int, n: int, level: float = 0.95) -> Estimate:
    """`share_of`, from the number of true outcomes among `n`."""
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(level, method="wilson")
    return Estimate(count / n, float(interval.low), float(interval.high), n)


def mean_of(values: Any) -> Estimate:
    """The mean of numbers, with its interval by the normal approximation; NaN is left out and counted as `empty`.

    Args:
        values: `[n]` numbers: a tensor, an array or a list. One number has no interval.
    """
    import torch  # not NumPy: its sums differ in the last digit, and stored scores must stay comparable

    numbers = torch.as_tensor(values, dtype=torch.float64)
    known = numbers[~numbers.isnan()]
    n, empty = len(known), len(numbers) - len(known)
    if n == 0:
        return Estimate(None, n=0, empty=empty)
    mean = float(known.mean())
    if n == 1:
        return Estimate(mean, n=1, empty=empty)
    half = 1.96 * float(known.std()) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, empty)


def median_of(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The median of numbers, with its interval by order statistics, which holds for any distribution.

    Args:
        values: at least one number. Fewer than six have no interval at a level of 0.95.
        level: the probability that the interval contains the median.
    """
    from scipy.stats import quantile_test

    interval = quantile_test(values, p=0.5).confidence_interval(level)
    ends = (float(interval.low), float(interval.high))
    known = all(map(math.isfinite, ends))
    return Estimate(float(np.median(values)), *(ends if known else (None, None)), len(values))


def share_apart(one: Any, other: Any) -> Estimate | None:
    """The difference of two shares of hits on the same images, `one` minus `other`, in [-1, 1]; None without images.

    Source: Newcombe 1998 (Statistics in Medicine 17: 2635-2650), method 10: Wilson's intervals of both shares, and their
    correlation with a continuity correction. The interval also holds for small n.

    Args:
        one, other: `[n]` booleans, as for `share_of`.
    """
    n = len(one)
    if not n:
        return None
    one, other = outcomes(one), outcomes(other)
    first, second = share_of(one).plain("share"), share_of(other).plain("share")
    difference = first["share"] - second["share"]
    correlation = corrected_correlation(one, other)
    down = first["share"] - first["low"], second["high"] - second["share"]
    up = first["high"] - first["share"], second["share"] - second["low"]
    below, above = (math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b)) for a, b in (down, up))
    return Estimate(difference, difference - below, difference + above, n)


def mcnemar(one: Any, other: Any) -> dict[str, Any]:
    """McNemar's exact test: are the images that only one of two models gets right evenly split?

    Source: McNemar 1947 (Psychometrika 12: 153-157), in its exact binomial form.

    Args:
        one, other: `[n]` booleans, as for `share_of`.

    Returns:
        `gained`: images that only `one` gets right, `lost`: those that only `other` gets right, `p` in [0, 1].
    """
    from scipy.stats import binomtest

    one, other = outcomes(one), outcomes(other)
    gained, lost = int((one & ~other).sum()), int((~one & other).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return {"gained": gained, "lost": lost, "p": p}


def corrected_correlation(one: Any, other: Any) -> float:
    """Newcombe's corrected correlation of two binary outcomes on the same images."""
    both, first, second, neither = (
        int((a & b).sum()) for a, b in ((one, other), (one, ~other), (~one, other), (~one, ~other))
    )
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if not margins:
        return 0.0
    product, n = both * neither - first * second, len(one)
    corrected = max(product - n / 2, 0) if product > 0 else product
    return corrected / math.sqrt(margins)


def outcomes(hits: Any) -> Any:
    """A tensor or an array as it is; a list as an array."""
    return np.asarray(hits, dtype=bool) if isinstance(hits, Sequence) else hits
