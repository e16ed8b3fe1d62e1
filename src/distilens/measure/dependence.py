"""How sure a distance correlation is: its interval, its p-value, and whether one is larger than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distilens.errors import UserError
from distilens.measure.distance_correlation import (
    FEWEST,
    Distances,
    Representation,
    correlation,
    distance_correlation,
    partial,
    remove,
    same_samples,
    semi_partial,
)

ENOUGH = 64
"""With fewer samples a single value says little: the deviation at independence is `sqrt(2 / (n (n − 3)))`, 0.2 at n = 8."""

PERMUTED = 512
"""Samples that a permutation test uses at most."""


@dataclass(frozen=True)
class Dependence:
    """A distance correlation, and how sure it is.

    Attributes:
        value: the statistic, in [-1, 1].
        n: how many samples.
        low, high: its 95 % interval, by jackknife; NaN at n = 4, and where nothing varies.
        p: of the hypothesis that the two are independent: how often so much or more would come by chance.
        z: the value in deviations of its distribution at independence.
        notes: what is to be known of it.
    """

    value: float
    n: int
    low: float
    high: float
    p: float
    z: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f} to {self.high:.3f}] (n = {self.n:,})"


def dependence(
    x: Representation,
    y: Representation,
    given: Representation | None = None,
    *,
    full: bool = False,
    permutations: int = 0,
    seed: int = 0,
) -> Dependence:
    """The unbiased distance correlation of `x` and `y` with its interval and its p-value.

    At independence `sqrt(v − 1) R / sqrt(1 − R²)` with `v = n (n − 3) / 2` is nearly Student's t with `v − 1` degrees of freedom
    where features are wide; `R sqrt(v)` is the z-score. With permutations, both are counted and not assumed: the rows of `x`
    (of what is left of it) are put in random orders.

    The interval is `R ± t · se`, with the standard error of the jackknife, whose values leave one sample out each and cost
    `O(n²)` together. (A bootstrap draws some samples twice, at distance 0, which reads as dependence.)

    Args:
        given: what is removed from `x` first: semi-partial; with `full`, from `y` too: partial.
        permutations: how many; at most the first 512 samples are permuted.

    Source: Székely and Rizzo 2013, "The distance correlation t-test of independence in high dimension".

    Raises:
        UserError: fewer than 4 samples, other numbers of samples, NaN.
    """
    from scipy import stats

    each = same_samples(*(one for one in (x, y, given) if one is not None))
    with torch.no_grad():
        value, notes = float(statistic(each, full)), told(each)
        n = each[0].n
        v = n * (n - 3) / 2
        if permutations:
            drawn = permuted(each, full, permutations, seed)
            p = (1 + int((drawn >= float(statistic(first(each), full))).sum())) / (1 + permutations)
            z = (float(statistic(first(each), full)) - drawn.mean()) / drawn.std() if drawn.std() else 0.0
        else:
            t = math.sqrt(max(v - 1, 1)) * value / math.sqrt(max(1 - value**2, 1e-300))
            p, z = float(stats.t.sf(t, max(v - 1, 1))), value * math.sqrt(v)
        low, high = math.nan, math.nan
        if n > FEWEST:
            far = jackknife(left_out(each, full))
            low, high = max(-1.0, value - far), min(1.0, value + far)
    return Dependence(value, n, low, high, p, float(z), notes)


def jackknife(left: Float[Tensor, " n"]) -> float:
    """Half of the 95 % interval of a statistic, from its values without each of the samples."""
    from scipy import stats

    n = len(left)
    error = math.sqrt((n - 1) / n * float((left - left.mean()).square().sum()))
    return float(stats.t.ppf(0.975, n - 1)) * error


@dataclass(frozen=True)
class Contrast:
    """How much larger one distance correlation is than another of the same samples, with its 95 % interval by jackknife."""

    value: float
    n: int
    low: float
    high: float


def contrast(first: Sequence[Representation], second: Sequence[Representation], *, full: bool = False) -> Contrast:
    """The difference of two distance correlations of the same samples, in [-2, 2], image by image.

    Two intervals that overlap do not say that there is no difference: both statistics move with the same images. Here both lose
    the same image at a time.

    Args:
        first: what `dependence` takes: `(x, y)` or `(x, y, given)`.
        second: the same of the other pair.

    Raises:
        UserError: as `dependence`; fewer than 5 samples, of which the jackknife leaves too few.
    """
    each = same_samples(*first, *second)
    one, other = each[: len(first)], each[len(first) :]
    n = each[0].n
    if n <= FEWEST:
        raise UserError(f"a difference of distance correlations takes {FEWEST + 1} samples at least; given {n}")
    with torch.no_grad():
        value = float(statistic(one, full)) - float(statistic(other, full))
        far = jackknife(left_out(one, full) - left_out(other, full))
    return Contrast(value, n, value - far, value + far)


def statistic(each: list[Distances], full: bool) -> Tensor:
    """The correlation of the first two, given the third if there is one."""
    x, y, *given = each
    return (partial if full else semi_partial)(x, y, given[0]) if given else distance_correlation(x, y)


def told(each: list[Distances]) -> tuple[str, ...]:
    """What is to be known of a statistic."""
    n, notes = each[0].n, []
    if n < ENOUGH:
        notes.append(
            f"{n} samples: at independence the deviation is {math.sqrt(2 / (n * (n - 3))):.2f}; take {ENOUGH} or more"
        )
    for name, one in zip(("x", "y", "given"), each, strict=False):
        if not one.centred().any():
            notes.append(
                f"{name} does not vary: all samples are at the same distance from each other, so it correlates 0"
            )
    return tuple(notes)


def first(each: list[Distances]) -> list[Distances]:
    """The samples that are permuted: the first 512."""
    return each if each[0].n <= PERMUTED else [one.of_first(PERMUTED) for one in each]


def permuted(each: list[Distances], full: bool, count: int, seed: int) -> np.ndarray:
    """The statistic with the rows of `x`, of what is left of it, in random orders."""
    a, b, *rest = (one.centred() for one in first(each))
    if rest:
        a, b = remove(a, rest[0]), remove(b, rest[0]) if full else b
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        order = torch.randperm(len(a), generator=generator).to(a.device)
        found.append(float(correlation(a[order][:, order], b)))
    return np.array(found)


def left_out(each: list[Distances], full: bool) -> Float[Tensor, " n"]:
    """The statistic without the first sample, without the second, and so on."""
    x, y, *given = each
    xy = without_each(x, y)
    if not given:
        return xy
    (z,) = given
    xz, yz = without_each(x, z), without_each(y, z)
    below = 1 - xz.square()
    below = (below * (1 - yz.square()) if full else below).sqrt()
    return torch.where(below > 1e-10, (xy - xz * yz) / below.where(below > 1e-10, 1), 0)


def without_each(x: Distances, y: Distances) -> Float[Tensor, " n"]:
    """The unbiased distance correlation without each of the samples in turn, from sums alone.

    `⟨A, B⟩ = Σ a_ij b_ij − 2 / (n − 2) Σ a_i. b_i. + a.. b.. / ((n − 1)(n − 2))`, and each of the sums loses a row and a column.
    """
    ab = reduced(x.matrix, y.matrix)
    aa, bb = (one.once("reduced", lambda a: reduced(a, a)) for one in (x, y))
    known = (aa > 0) & (bb > 0)
    return torch.where(known, ab / (aa * bb).where(known, 1).sqrt(), 0)


def reduced(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """`⟨A, B⟩` of U-centred distances, without each of the samples in turn; at most rounding is 0."""
    n = len(a) - 1
    both, left, right = (a * b).sum(1), a.sum(1), b.sum(1)
    total = both.sum() - 2 * both
    rows = (left * right).sum() - left * right - b @ left - a @ right + both
    found = total - 2 / (n - 2) * rows + (left.sum() - 2 * left) * (right.sum() - 2 * right) / ((n - 1) * (n - 2))
    return found.where(found.abs() > 1e-13 * total.abs(), 0)
