"""Inference for distance correlations: intervals, p-values, and the difference of two correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate
from distilens.measure.transfer.distance_correlation import (
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
"""Fewer samples are too noisy: the standard deviation at independence is `sqrt(2 / (n (n − 3)))`, 0.2 at n = 8."""

PERMUTED = 512
"""The maximum number of samples in a permutation test."""


@dataclass(frozen=True, kw_only=True)
class Dependence(Estimate):
    """A distance correlation with its interval and p-value.

    Attributes:
        value: the statistic, in [-1, 1].
        n: the number of samples.
        low, high: its 95 % interval, by jackknife; NaN for n = 4, or if nothing varies.
        p: the p-value of independence: how often this value or more would occur by chance.
        z: the value in standard deviations of its distribution at independence.
        notes: warnings about the value.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    p: float
    z: float
    notes: tuple[str, ...] = ()

    def plain(self, name: str = "value") -> dict[str, Any]:
        return super().plain(name) | {"p": self.p, "z": self.z, "notes": list(self.notes)}


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
    for wide features; `R sqrt(v)` is the z-score. With permutations, both are counted instead of assumed: the rows of `x` (after
    `given` is removed) are put in random orders.

    The interval is `R ± t · se`, with the standard error of the jackknife. All its leave-one-out values together cost `O(n²)`. (A
    bootstrap would repeat samples, at distance 0, which looks like dependence.)

    Args:
        given: a representation to remove from `x` first (semi-partial); with `full`, also from `y` (partial).
        permutations: number of permutations; at most the first 512 samples are permuted.

    Source: Székely and Rizzo 2013, "The distance correlation t-test of independence in high dimension".

    Raises:
        UserError: fewer than 4 samples, different numbers of samples, NaN.
    """
    from scipy import stats

    each = same_samples(*(one for one in (x, y, given) if one is not None))
    with torch.no_grad():
        value, notes = float(statistic(each, full)), find_warnings(each)
        n = each[0].n
        v = n * (n - 3) / 2
        if permutations:
            null = permuted(each, full, permutations, seed)
            p = (1 + int((null >= float(statistic(first(each), full))).sum())) / (1 + permutations)
            z = (float(statistic(first(each), full)) - null.mean()) / null.std() if null.std() else 0.0
        else:
            t = math.sqrt(max(v - 1, 1)) * value / math.sqrt(max(1 - value**2, 1e-300))
            p, z = float(stats.t.sf(t, max(v - 1, 1))), value * math.sqrt(v)
        low, high = math.nan, math.nan
        if n > FEWEST:
            half = jackknife(left_out(each, full))
            low, high = max(-1.0, value - half), min(1.0, value + half)
    return Dependence(value=value, low=low, high=high, n=n, p=p, z=float(z), notes=notes)


def jackknife(left: Float[Tensor, " n"]) -> float:
    """Half of the 95 % interval of a statistic, from its leave-one-out values."""
    from scipy import stats

    n = len(left)
    error = math.sqrt((n - 1) / n * float((left - left.mean()).square().sum()))
    return float(stats.t.ppf(0.975, n - 1)) * error


@dataclass(frozen=True)
class Contrast(Estimate):
    """The difference of two distance correlations on the same samples, with its 95 % interval by jackknife."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0


def contrast(first: Sequence[Representation], second: Sequence[Representation], *, full: bool = False) -> Contrast:
    """The difference of two distance correlations on the same samples, `first` minus `second`, in [-2, 2].

    The two intervals may overlap although there is a difference, because both statistics depend on the same images. Here the
    jackknife leaves the same image out of both.

    Args:
        first: the arguments of `dependence`: `(x, y)` or `(x, y, given)`.
        second: the same for the other correlation.

    Raises:
        UserError: as in `dependence`, or fewer than 5 samples, which are too few for the jackknife.
    """
    each = same_samples(*first, *second)
    one, other = each[: len(first)], each[len(first) :]
    n = each[0].n
    if n <= FEWEST:
        raise UserError(f"a difference of distance correlations needs at least {FEWEST + 1} samples; given {n}")
    with torch.no_grad():
        value = float(statistic(one, full)) - float(statistic(other, full))
        half = jackknife(left_out(one, full) - left_out(other, full))
    return Contrast(value, value - half, value + half, n)


def statistic(each: list[Distances], full: bool) -> Tensor:
    """The correlation of the first two, given the third if any."""
    x, y, *given = each
    return (partial if full else semi_partial)(x, y, given[0]) if given else distance_correlation(x, y)


def find_warnings(each: list[Distances]) -> tuple[str, ...]:
    """Warnings about a statistic."""
    n, notes = each[0].n, []
    if n < ENOUGH:
        notes.append(
            f"{n} samples: the standard deviation at independence is {math.sqrt(2 / (n * (n - 3))):.2f}; take {ENOUGH} or more"
        )
    for name, one in zip(("x", "y", "given"), each, strict=False):
        if not one.centred().any():
            notes.append(
                f"{name} does not vary: all samples have the same distance from each other, so its correlation is 0"
            )
    return tuple(notes)


def first(each: list[Distances]) -> list[Distances]:
    """The samples to permute: the first 512."""
    return each if each[0].n <= PERMUTED else [one.of_first(PERMUTED) for one in each]


def permuted(each: list[Distances], full: bool, count: int, seed: int) -> np.ndarray:
    """The statistics with the rows of `x` (after the given representation is removed) in random orders."""
    a, b, *rest = (one.centred() for one in first(each))
    if rest:
        a, b = remove(a, rest[0]), remove(b, rest[0]) if full else b
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(count):
        order = torch.randperm(len(a), generator=generator).to(a.device)
        values.append(float(correlation(a[order][:, order], b)))
    return np.array(values)


def left_out(each: list[Distances], full: bool) -> Float[Tensor, " n"]:
    """The leave-one-out values of the statistic."""
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
    """The leave-one-out values of the unbiased distance correlation, from sums only.

    `⟨A, B⟩ = Σ a_ij b_ij − 2 / (n − 2) Σ a_i. b_i. + a.. b.. / ((n − 1)(n − 2))`; each sum loses one row and one column.
    """
    ab = reduced(x.matrix, y.matrix)
    aa, bb = (one.once("reduced", lambda a: reduced(a, a)) for one in (x, y))
    known = (aa > 0) & (bb > 0)
    return torch.where(known, ab / (aa * bb).where(known, 1).sqrt(), 0)


def reduced(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """The leave-one-out values of `⟨A, B⟩` for U-centred distances; values within rounding become 0."""
    n = len(a) - 1
    both, left, right = (a * b).sum(1), a.sum(1), b.sum(1)
    total = both.sum() - 2 * both
    rows = (left * right).sum() - left * right - b @ left - a @ right + both
    product = total - 2 / (n - 2) * rows + (left.sum() - 2 * left) * (right.sum() - 2 * right) / ((n - 1) * (n - 2))
    return product.where(product.abs() > 1e-13 * total.abs(), 0)
