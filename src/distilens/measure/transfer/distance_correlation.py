"""Distance correlation: how much of one representation's geometry is in another's, for any widths.

Two models' features of the same `n` images are compared by the distances between images. Unless noted, all statistics are the
unbiased ones (Székely and Rizzo 2014): independent features have mean 0, for any `n` and width. (The biased statistic of 2,048
independent features is 0.999 at n = 5 and still 0.985 at n = 128.) They are squared and signed; values below 0 are noise.

All computations are in float64, on the device of the inputs, from `n × n` distances, without an `n × n × d` tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.foundation.errors import UserError

FEWEST = 4
"""With fewer samples the unbiased statistic is not defined."""

NARROW = 64
"""Up to this number of columns, distances are computed directly from differences."""

CLOSE = 1e-4
"""Squared distances below this share of the points' squared norms lose digits in a matrix product; they are computed again."""

ROUNDING = 1e-13
"""A centred matrix counts as zero if all its values are below this share of the largest distance."""

AT_ONCE = 1 << 27
"""Bytes of columns or pairs per chunk."""


class _Distances(torch.autograd.Function):
    """Euclidean distances between rows; the gradient at equal rows is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        matrix = between(x)
        ctx.save_for_backward(x, matrix)
        return matrix

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, matrix = ctx.saved_tensors
        (gradient,) = gradients
        pull = torch.where(matrix > 0, gradient / matrix.where(matrix > 0, 1), 0)
        pull = pull + pull.T
        total, parts = pull.sum(1, keepdim=True), []
        for part in columns(x):
            parts.append((total * part - pull @ part).to(x.dtype))
        return torch.cat(parts, 1)


def columns(x: Tensor) -> Iterator[Tensor]:
    """Chunks of columns in float64, with the columns' means removed, which does not change distances."""
    width = max(1, AT_ONCE // (8 * len(x)))
    for part in x.split(width, 1):
        part = part.double()
        yield part - part.mean(0)


@torch.no_grad()
def between(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Distances between rows, in float64, in `O(n² + n d)` memory.

    `|x_i − x_j|² = |x_i|² + |x_j|² − 2 ⟨x_i, x_j⟩`, with the mean row removed. Pairs so close that this loses digits are computed
    again directly.
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
    result = squares.clamp_min_(0).sqrt_().fill_diagonal_(0)
    for close in torch.arange(len(rows), device=x.device).split(max(1, AT_ONCE // (16 * x.shape[1]))):
        exact = (x[rows[close]].double() - x[others[close]].double()).square().sum(1).sqrt()
        result[rows[close], others[close]] = exact
        result[others[close], rows[close]] = exact
    return result


class Distances:
    """The distances between samples in one representation, computed once for many comparisons.

    Args:
        features: `[n ...]`, one row per sample; further dimensions are flattened.
        index: identifies the samples; comparing different samples, or another order, is then an error.

    Raises:
        UserError: fewer than 4 samples, NaN, different numbers of features and index entries.
    """

    def __init__(self, features: Tensor, index: Int[Tensor, " n"] | None = None):
        if len(features) < FEWEST:
            raise UserError(f"distance correlation needs at least {FEWEST} samples; given {len(features)}")
        rows = features.flatten(1) if features.ndim > 1 else features[:, None]
        if not rows.is_floating_point():
            rows = rows.double()
        if not rows.detach().sum().isfinite() and not rows.detach().isfinite().all():
            broken = (~rows.detach().isfinite().all(1)).nonzero().flatten().tolist()
            raise UserError(f"the features of samples {', '.join(map(str, broken[:8]))} are NaN or infinite")
        if index is not None and len(index) != len(rows):
            raise UserError(f"there are {len(rows)} rows of features, but an index of {len(index)} samples")
        self.matrix = cast(Tensor, _Distances.apply(rows))
        self.n, self.index = len(rows), index
        self.made: dict[str, Tensor] = {}

    def centred(self, *, biased: bool = False) -> Float[Tensor, "n n"]:
        """The centred matrix: see `u_centred`, and for `biased` see `centred_twice`."""
        make = centred_twice if biased else u_centred
        return self.once(make.__name__, make)

    def once(self, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(matrix)`, cached under `name` unless the matrix requires a gradient."""
        if self.matrix.requires_grad:
            return make(self.matrix)
        if name not in self.made:
            self.made[name] = make(self.matrix)
        return self.made[name]

    def of_first(self, count: int) -> Distances:
        """The distances between the first `count` samples."""
        part = object.__new__(Distances)
        part.matrix, part.n, part.made = self.matrix[:count, :count], min(count, self.n), {}
        part.index = None if self.index is None else self.index[:count]
        return part


def u_centred(a: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """`A_ij = a_ij − a_i. / (n − 2) − a_.j / (n − 2) + a.. / ((n − 1)(n − 2))`, and 0 on the diagonal.

    The result is exactly 0 if only rounding remains, for example if all samples have the same distance from each other.
    """
    n = a.shape[-1]
    rows, columns = a.sum(-1, keepdim=True), a.sum(-2, keepdim=True)
    centred = a - (rows + columns) / (n - 2) + rows.sum(-2, keepdim=True) / ((n - 1) * (n - 2))
    return without_rounding(centred.masked_fill(torch.eye(n, dtype=torch.bool, device=a.device), 0), a)


def centred_twice(a: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """Double centring: subtract the means of rows and columns, add the mean of all."""
    return without_rounding(a - a.mean(-1, keepdim=True) - a.mean(-2, keepdim=True) + a.mean((-2, -1), keepdim=True), a)


def without_rounding(centred: Float[Tensor, "*b n n"], whole: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    left, largest = (part.detach().abs().amax((-2, -1), keepdim=True) for part in (centred, whole))
    return centred.masked_fill(left <= ROUNDING * largest, 0)


Representation = Tensor | Distances


def distances(given: Representation) -> Distances:
    return given if isinstance(given, Distances) else Distances(given)


def same_samples(*each: Representation) -> list[Distances]:
    """The distances of each representation, checked for equal samples.

    Raises:
        UserError: the numbers of samples differ, or (if indices are given) the samples differ.
    """
    spaces = [distances(one) for one in each]
    if len({space.n for space in spaces}) > 1:
        counts = ", ".join(str(space.n) for space in spaces)
        raise UserError(f"representations must have the same samples; given {counts} samples")
    known = [space.index.cpu() for space in spaces if space.index is not None]
    for other in known[1:]:
        differ = (known[0] != other).nonzero().flatten()
        if len(differ):
            place = int(differ[0])
            raise UserError(
                f"representations must have the same samples in the same order; at place {place} one has sample "
                f"{int(known[0][place])} and another {int(other[place])}"
            )
    return spaces


def inner(a: Float[Tensor, "*b n n"], b: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b"]:
    """`⟨A, B⟩` up to a factor that cancels in correlations: the sum over all pairs."""
    return (a * b).sum((-2, -1))


def correlation(a: Float[Tensor, "*b n n"], b: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b"]:
    """The cosine of two centred matrices; 0 if one of them is 0."""
    aa, bb = inner(a, a), inner(b, b)
    known = (aa > 0) & (bb > 0)
    return torch.where(known, inner(a, b) / (aa * bb).where(known, 1).sqrt(), 0)


def remove(a: Float[Tensor, "*b n n"], b: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """`A − ⟨A, B⟩ / ⟨B, B⟩ · B`: the part of A orthogonal to B; exactly 0 if only rounding remains."""
    bb = inner(b, b)
    share = torch.where(bb > 0, inner(a, b) / bb.where(bb > 0, 1), 0)
    left = a - share[..., None, None] * b
    nothing = inner(left, left) <= 1e-20 * inner(a, a)
    return left.masked_fill(nothing[..., None, None], 0)


def distance_correlation(x: Representation, y: Representation, *, biased: bool = False) -> Tensor:
    """The squared distance correlation of two representations, in [-1, 1]; 1 if they are equal up to shift, rotation and scale.

    `R = ⟨A, B⟩ / sqrt(⟨A, A⟩ ⟨B, B⟩)` with U-centred distances. It has mean 0 for independent features and may be negative. With
    `biased`, it is the V-statistic of double-centred distances: never negative, and near 1 for few samples.

    Args:
        x: features `[n ...]`, or their `Distances`. Features may require a gradient.
        y: the same of the same samples.
        biased: see above. R's `energy` calls the unbiased statistic `bcdcor` and the root of the biased statistic `dcor`.

    Source: Székely and Rizzo 2013, 2014 (arXiv 1310.2926), definition 2; biased: Székely, Rizzo and Bakirov 2007.

    Raises:
        UserError: fewer than 4 samples, different numbers of samples, NaN.
    """
    a, b = (one.centred(biased=biased) for one in same_samples(x, y))
    return correlation(a, b)


def semi_partial(x: Representation, y: Representation, given: Representation) -> Tensor:
    """The semi-partial distance correlation of `x` and `y`: `given` is removed from `x` only.

    `R = ⟨P, B⟩ / sqrt(⟨P, P⟩ ⟨B, B⟩)` with `P = remove(A, C)`. It is 0 if nothing of `x` remains. UniCAM uses this statistic.
    """
    a, b, c = (one.centred() for one in same_samples(x, y, given))
    return correlation(remove(a, c), b)


def partial(x: Representation, y: Representation, given: Representation) -> Tensor:
    """The partial distance correlation: `given` is removed from both (R's `energy::pdcor`).

    Source: Székely and Rizzo 2014, definition 3: `(r_xy − r_xz r_yz) / sqrt((1 − r_xz²) (1 − r_yz²))`.
    """
    a, b, c = (one.centred() for one in same_samples(x, y, given))
    return correlation(remove(a, c), remove(b, c))
