"""Distance correlation: how much of one representation's geometry is in another's, whatever their widths.

Two models' features of the same `n` images are compared by the distances between images. All statistics here are the unbiased
ones (Székely and Rizzo 2014) unless said: independent features have mean 0, whatever `n` and the width, where the biased
statistic of 2,048 independent features reads 0.999 at n = 5 and still 0.985 at n = 128. They are squared and signed: values
below 0 are noise.

Everything is computed in float64, on the device of what is given, from `n × n` distances; an `n × n × d` tensor is never made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.errors import UserError

FEWEST = 4
"""With fewer samples the unbiased statistic is not defined."""

NARROW = 64
"""Up to so many columns the differences themselves are squared and summed, row by row."""

CLOSE = 1e-4
"""Squared distances below this share of the points' squared norms lose digits in a matrix product, and are computed again."""

ROUNDING = 1e-13
"""A centred matrix whose values are all below this share of the largest distance is none: nothing varies."""

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
        index: which samples these are; representations of other samples, or in another order, are then not compared.

    Raises:
        UserError: fewer than 4 samples, NaN, other numbers of features and of samples.
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
            raise UserError(f"{len(rows)} rows of features, and an index of {len(index)} samples")
        self.matrix = cast(Tensor, _Distances.apply(rows))
        self.n, self.index = len(rows), index
        self.made: dict[str, Tensor] = {}

    def centred(self, *, biased: bool = False) -> Float[Tensor, "n n"]:
        """The matrix without what a sample has in common with all others: see `u_centred`, and with `biased`, `centred_twice`."""
        make = centred_twice if biased else u_centred
        return self.once(make.__name__, make)

    def once(self, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What is made of the matrix: made once, unless a gradient goes through it."""
        if self.matrix.requires_grad:
            return make(self.matrix)
        if name not in self.made:
            self.made[name] = make(self.matrix)
        return self.made[name]

    def of_first(self, count: int) -> Distances:
        """The distances between the first samples alone."""
        some = object.__new__(Distances)
        some.matrix, some.n, some.made = self.matrix[:count, :count], min(count, self.n), {}
        some.index = None if self.index is None else self.index[:count]
        return some


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
        UserError: they have different numbers of samples, or other samples, where it is known which.
    """
    found = [distances(one) for one in each]
    if len({one.n for one in found}) > 1:
        raise UserError(f"the same samples are compared; given {', '.join(str(one.n) for one in found)} of them")
    known = [one.index.cpu() for one in found if one.index is not None]
    for other in known[1:]:
        apart = (known[0] != other).nonzero().flatten()
        if len(apart):
            place = int(apart[0])
            raise UserError(
                f"the same samples are compared, in the same order; at place {place} one has sample "
                f"{int(known[0][place])} and another {int(other[place])}"
            )
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
