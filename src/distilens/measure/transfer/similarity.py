"""FSS and RS: how similar two models' features are, and how much of the task is in a model's features."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from distilens.foundation.errors import UserError
from distilens.measure.transfer.dependence import Dependence, dependence
from distilens.measure.transfer.distance_correlation import Distances, Representation, distance_correlation
from distilens.measure.transfer.unicam import embedded


def fss(x: Representation, y: Representation, *, biased: bool = False, permutations: int = 0) -> Dependence:
    """FSS, the feature similarity score: how much of one model's geometry is in another's, for any widths. 1 is all of it.

    This is the unbiased distance correlation. With `biased`, it is the statistic of the paper's released code: the V-statistic of
    rows of length 1, which is always near 1 for few samples, without an interval. (`Distances` are used without normalising.)

    Args:
        x: features of some images, or their `Distances`.
        y: features of the same images, or their `Distances`.

    Source: Adhane et al. 2025 (arXiv 2412.13943).
    """
    return biased_one(x, y) if biased else dependence(x, y, permutations=permutations)


def rs(
    x: Representation,
    task: Tensor | Distances,
    given: Representation | None = None,
    *,
    full: bool = False,
    biased: bool = False,
    permutations: int = 0,
) -> Dependence:
    """RS, the relevance score: how much of the task is in a model's features, or in the part that `given` does not explain.

    With one-hot labels, 1 means that all images of a class are at one point, and all classes have the same distance.

    Args:
        x: features, or their `Distances`.
        task: labels `[n]`, embeddings `[n e]`, or their `Distances`.
        given: the other model's features, which are removed from `x`; with `full`, also from the task.

    Source: Adhane et al. 2025 (arXiv 2412.13943); with `given` it is the objective of `UniCAM`.
    """
    aim = task if isinstance(task, Distances) else Distances(embedded(task))
    if biased:
        if given is not None:
            raise UserError("the biased statistic has no partial form: leave out biased=true, or given")
        return biased_one(x, aim)
    return dependence(x, aim, given, full=full, permutations=permutations)


def biased_one(x: Representation, y: Representation) -> Dependence:
    """The statistic of the released code: rows of length 1, double-centred distances, never negative."""
    ours, others = (one if isinstance(one, Distances) else Distances(normalised_rows(one)) for one in (x, y))
    note = f"biased: independent features of {ours.n} samples do not score 0, so the value alone has no meaning"
    value = float(distance_correlation(ours, others, biased=True))
    return Dependence(value=value, n=ours.n, p=math.nan, z=math.nan, notes=(note,))


def normalised_rows(x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Every row divided by its length; rows of zeros do not change."""
    return normalize(x.flatten(1).double(), dim=1)


def cka(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> float:
    """Linear CKA (centred kernel alignment), unbiased, in [-1, 1]: another measure of similarity, as a cross-check.

    `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))` with `K = x xᵀ` and the estimator of Song et al. 2012 (equation 5), whose
    diagonals are 0.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), Nguyen et al. 2021 (arXiv 2010.15327), equation 2.
    """
    first, second = (gram(rows) for rows in (x, y))
    top, left, right = hsic(first, second), hsic(first, first), hsic(second, second)
    return float(top / (left * right).sqrt()) if left > 0 and right > 0 else 0.0


def gram(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    rows = x.detach().flatten(1).double()
    rows = rows - rows.mean(0)
    return (rows @ rows.T).fill_diagonal_(0)


def hsic(k: Float[Tensor, "n n"], other: Float[Tensor, "n n"]) -> Tensor:
    """The unbiased estimator, up to the factor `1 / (n (n − 3))`."""
    n = len(k)
    rows, others = k.sum(0), other.sum(0)
    return (k * other).sum() + rows.sum() * others.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows * others).sum()
