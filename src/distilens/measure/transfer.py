"""What was passed on, in numbers: how alike two models' features are (FSS), and how much they say of the task (RS)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from distilens.errors import UserError
from distilens.measure.dependence import Dependence, dependence
from distilens.measure.distance_correlation import Distances, Representation, distance_correlation
from distilens.measure.unicam import embedded


def fss(x: Representation, y: Representation, *, biased: bool = False, permutations: int = 0) -> Dependence:
    """The feature similarity score: how much of one model's geometry is in another's, whatever their widths. 1 is all of it.

    The unbiased distance correlation; with `biased`, what the paper's released code computes: the V-statistic of rows of length
    1, which of few samples is always near 1, without an interval. (Rows given as `Distances` are taken as they are.)

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
    """The relevance score: how much of the task is in a model's features; of the part that another's do not explain, where given.

    Against one-hot labels 1 would be: all images of a class in one place, and all classes as far from each other.

    Args:
        x: features, or their `Distances`.
        task: labels `[n]`, embeddings `[n e]`, or their `Distances`.
        given: the other model's features: those are removed from `x`; with `full` from the task too.

    Source: Adhane et al. 2025 (arXiv 2412.13943); with `given` it is the objective of `UniCAM`.
    """
    aim = task if isinstance(task, Distances) else Distances(embedded(task))
    if biased:
        if given is not None:
            raise UserError("the biased statistic has no partial form: biased=true goes without given")
        return biased_one(x, aim)
    return dependence(x, aim, given, full=full, permutations=permutations)


def biased_one(x: Representation, y: Representation) -> Dependence:
    """As the released code has it: rows of length 1, doubly centred distances, a ratio that is never negative."""
    ours, others = (one if isinstance(one, Distances) else Distances(normalised_rows(one)) for one in (x, y))
    nan = float("nan")
    note = f"biased: independent features of {ours.n} samples are not at 0, so the value alone says nothing"
    return Dependence(float(distance_correlation(ours, others, biased=True)), ours.n, nan, nan, nan, nan, (note,))


def normalised_rows(x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Every row divided by its length; rows of zeros stay."""
    return normalize(x.flatten(1).double(), dim=1)


def cka(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> float:
    """Linear centred kernel alignment, unbiased: another way to ask how alike two geometries are, as a cross-check. In [-1, 1].

    `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))` with `K = x xᵀ` and the estimator of Song et al. 2012 (equation 5), whose
    diagonals are 0.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), Nguyen et al. 2021 (arXiv 2010.15327), equation 2.
    """
    first, second = (gram(each) for each in (x, y))
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
