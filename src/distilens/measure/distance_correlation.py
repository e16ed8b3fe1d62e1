"""Distance correlation: how much of one representation's geometry is in another's, whatever their widths.

Two models' features of the same `n` images are compared by the distances between images. All statistics here are the unbiased
ones (Székely and Rizzo 2014) unless said: independent features have mean 0, whatever `n` and the width, where the biased
statistic of 2,048 independent features reads 0.999 at n = 5 and still 0.985 at n = 128. They are squared and signed: values
below 0 are noise.

Everything is computed in float64, on the device of what is given, from `n × n` distances; an `n × n × d` tensor is never made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from distilens.errors import UserError

FEWEST = 4
"""With fewer samples the unbiased statistic is not defined."""

ENOUGH = 64
"""With fewer samples a single value says little: the deviation at independence is `sqrt(2 / (n (n − 3)))`, 0.2 at n = 8."""

NARROW = 64
"""Up to so many columns the differences themselves are squared and summed, row by row."""

CLOSE = 1e-4
"""Squared distances below this share of the points' squared norms lose digits in a matrix product, and are computed again."""

ROUNDING = 1e-13
"""A centred matrix whose values are all below this share of the largest distance is none: nothing varies."""

PERMUTED = 512
"""Samples that a permutation test uses at most."""

AT_ONCE = 1 << 27
"""Bytes of columns or pairs that are worked on at once."""


class _Distances(torch.autograd.Function):
    """Euclidean distances between rows, with a gradient that is 0 at equal rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = between(x)
        ctx.save_for_backward(x, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, found = ctx.saved_tensors
        (gradient,) = gradients
        pull = torch.where(found > 0, gradient / found.where(found > 0, 1), 0)
        pull = pull + pull.T
        total, parts = pull.sum(1, keepdim=True), []
        for part in columns(x):
            parts.append((total * part - pull @ part).to(x.dtype))
        return torch.cat(parts, 1)


def columns(x: Tensor) -> Iterator[Tensor]:
    """Some columns at a time, in float64, each with mean 0, which no distance depends on."""
    width = max(1, AT_ONCE // (8 * len(x)))
    for part in x.split(width, 1):
        part = part.double()
        yield part - part.mean(0)


@torch.no_grad()
def between(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Distances between rows, in float64, in `O(n² + n d)` memory.

    `|x_i − x_j|² = |x_i|² + |x_j|² − 2 ⟨x_i, x_j⟩` for rows with mean 0; pairs so close that the difference loses digits are
    measured again directly.
    """
    if x.shape[1] <= NARROW:
        return torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    products = x.new_zeros(len(x), len(x), dtype=torch.float64)
    for part in columns(x):
        products.addmm_(part, part.T)
    norms = products.diagonal().clone()
    scale = norms[:, None] + norms
    squares = scale - 2 * products
    del products
    rows, others = (squares < CLOSE * scale).triu(1).nonzero(as_tuple=True)
    found = squares.clamp_min_(0).sqrt_().fill_diagonal_(0)
    for some in torch.arange(len(rows), device=x.device).split(max(1, AT_ONCE // (16 * x.shape[1]))):
        exact = (x[rows[some]].double() - x[others[some]].double()).square().sum(1).sqrt()
        found[rows[some], others[some]] = exact
        found[others[some], rows[some]] = exact
    return found


class Distances:
    """The distances between samples in one representation: made once, compared with many others.

    Args:
        features: `[n ...]`, one row a sample; further dimensions are flattened.

    Raises:
        UserError: fewer than 4 samples, or NaN.
    """

    def __init__(self, features: Tensor):
        if len(features) < FEWEST:
            raise UserError(f"distance correlation needs at least {FEWEST} samples; given {len(features)}")
        rows = features.flatten(1) if features.ndim > 1 else features[:, None]
        if not rows.is_floating_point():
            rows = rows.double()
        if not rows.detach().sum().isfinite() and not rows.detach().isfinite().all():
            broken = (~rows.detach().isfinite().all(1)).nonzero().flatten().tolist()
            raise UserError(f"the features of samples {', '.join(map(str, broken[:8]))} are NaN or infinite")
        self.matrix = cast(Tensor, _Distances.apply(rows))
        self.n = len(rows)

    def centred(self, *, biased: bool = False) -> Float[Tensor, "n n"]:
        """The matrix without what a sample has in common with all others: see `u_centred`, and with `biased`, `centred_twice`."""
        return (centred_twice if biased else u_centred)(self.matrix)


def u_centred(a: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """`A_ij = a_ij − a_i. / (n − 2) − a_.j / (n − 2) + a.. / ((n − 1)(n − 2))`, and 0 on the diagonal.

    Exactly 0 where nothing but rounding is left, as for samples that are all as far from each other.
    """
    n = a.shape[-1]
    rows, columns = a.sum(-1, keepdim=True), a.sum(-2, keepdim=True)
    found = a - (rows + columns) / (n - 2) + rows.sum(-2, keepdim=True) / ((n - 1) * (n - 2))
    return without_rounding(found.masked_fill(torch.eye(n, dtype=torch.bool, device=a.device), 0), a)


def centred_twice(a: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """The means of rows and of columns taken away, and that of all added."""
    return without_rounding(a - a.mean(-1, keepdim=True) - a.mean(-2, keepdim=True) + a.mean((-2, -1), keepdim=True), a)


def without_rounding(centred: Float[Tensor, "*b n n"], whole: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    left, largest = (part.detach().abs().amax((-2, -1), keepdim=True) for part in (centred, whole))
    return centred.masked_fill(left <= ROUNDING * largest, 0)


Representation = Tensor | Distances


def distances(given: Representation) -> Distances:
    return given if isinstance(given, Distances) else Distances(given)


def same_samples(*each: Representation) -> list[Distances]:
    """Distances of each.

    Raises:
        UserError: they have different numbers of samples.
    """
    found = [distances(one) for one in each]
    if len({one.n for one in found}) > 1:
        raise UserError(f"the same samples are compared; given {', '.join(str(one.n) for one in found)} of them")
    return found


def inner(a: Float[Tensor, "*b n n"], b: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b"]:
    """`⟨A, B⟩` up to a factor that cancels in correlations: the sum over all pairs."""
    return (a * b).sum((-2, -1))


def correlation(a: Float[Tensor, "*b n n"], b: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b"]:
    """The cosine of two centred matrices; 0 where one of them is 0."""
    aa, bb = inner(a, a), inner(b, b)
    known = (aa > 0) & (bb > 0)
    return torch.where(known, inner(a, b) / (aa * bb).where(known, 1).sqrt(), 0)


def remove(a: Float[Tensor, "*b n n"], b: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """`A − ⟨A, B⟩ / ⟨B, B⟩ · B`: what of A is orthogonal to B. Exactly 0 where nothing but rounding is left."""
    bb = inner(b, b)
    share = torch.where(bb > 0, inner(a, b) / bb.where(bb > 0, 1), 0)
    left = a - share[..., None, None] * b
    nothing = inner(left, left) <= 1e-20 * inner(a, a)
    return left.masked_fill(nothing[..., None, None], 0)


def distance_correlation(x: Representation, y: Representation, *, biased: bool = False) -> Tensor:
    """The squared distance correlation of two representations, in [-1, 1]; 1 for one that is the other moved, turned, scaled.

    `R = ⟨A, B⟩ / sqrt(⟨A, A⟩ ⟨B, B⟩)` with U-centred distances, which has mean 0 for independent features and may be negative.
    With `biased`, the V-statistic of doubly centred distances: never negative, and near 1 whenever there are few samples.

    Args:
        x, y: features `[n ...]` of the same samples, or their `Distances`. Features may require a gradient.
        biased: see above. R's `energy` calls the unbiased statistic `bcdcor` and the root of the biased one `dcor`.

    Source: Székely and Rizzo 2013, 2014 (arXiv 1310.2926), definition 2; the biased one Székely, Rizzo and Bakirov 2007.

    Raises:
        UserError: fewer than 4 samples, other numbers of samples, NaN.
    """
    a, b = (one.centred(biased=biased) for one in same_samples(x, y))
    return correlation(a, b)


def semi_partial(x: Representation, y: Representation, given: Representation) -> Tensor:
    """How much of `y` is in what of `x` the given representation does not explain: `given` is removed from `x` alone.

    `R = ⟨P, B⟩ / sqrt(⟨P, P⟩ ⟨B, B⟩)` with `P = remove(A, C)`. 0 where nothing of `x` is left. UniCAM's statistic.
    """
    a, b, c = (one.centred() for one in same_samples(x, y, given))
    return correlation(remove(a, c), b)


def partial(x: Representation, y: Representation, given: Representation) -> Tensor:
    """The partial distance correlation: `given` is removed from both. `energy::pdcor`.

    Source: Székely and Rizzo 2014, definition 3: `(r_xy − r_xz r_yz) / sqrt((1 − r_xz²) (1 − r_yz²))`.
    """
    a, b, c = (one.centred() for one in same_samples(x, y, given))
    return correlation(remove(a, c), remove(b, c))


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
            left = left_out(each, full)
            error = math.sqrt((n - 1) / n * float((left - left.mean()).square().sum()))
            far = float(stats.t.ppf(0.975, n - 1)) * error
            low, high = max(-1.0, value - far), min(1.0, value + far)
    return Dependence(value, n, low, high, p, float(z), notes)


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
    if each[0].n <= PERMUTED:
        return each
    made = []
    for one in each:
        some = object.__new__(Distances)
        some.matrix, some.n = one.matrix[:PERMUTED, :PERMUTED], PERMUTED
        made.append(some)
    return made


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
    x, y, *given = (one.matrix for one in each)
    xy = without_each(x, y)
    if not given:
        return xy
    (z,) = given
    xz, yz = without_each(x, z), without_each(y, z)
    below = 1 - xz.square()
    below = (below * (1 - yz.square()) if full else below).sqrt()
    return torch.where(below > 1e-10, (xy - xz * yz) / below.where(below > 1e-10, 1), 0)


def without_each(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """The unbiased distance correlation without each of the samples in turn, from sums alone.

    `⟨A, B⟩ = Σ a_ij b_ij − 2 / (n − 2) Σ a_i. b_i. + a.. b.. / ((n − 1)(n − 2))`, and each of the sums loses a row and a column.
    """
    ab, aa, bb = reduced(a, b), reduced(a, a), reduced(b, b)
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
