"""What was passed on, in numbers: how alike models' features are (FSS), and how much they say of the task (RS), tap by tap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.core import Batch, Model
from distilens.errors import UserError
from distilens.explain.explanation import quietly
from distilens.measure.distance_correlation import (
    Dependence,
    Distances,
    Representation,
    dependence,
    distance_correlation,
)
from distilens.measure.unicam import Features, as_rows, embedded
from distilens.taps import grid


def fss(x: Representation, y: Representation, *, biased: bool = False, permutations: int = 0) -> Dependence:
    """The feature similarity score: how much of one model's geometry is in another's, whatever their widths. 1 is all of it.

    The unbiased distance correlation; with `biased`, the V-statistic that the released code of the paper takes, which of few
    samples is always near 1, without an interval.

    Args:
        x, y: features of the same images, or their `Distances`.

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
    found = x if isinstance(x, Distances) else Distances(x)
    nan = float("nan")
    note = f"biased: independent features of {found.n} samples are not at 0, so the value alone says nothing"
    return Dependence(float(distance_correlation(found, y, biased=True)), found.n, nan, nan, nan, nan, (note,))


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


def features_at(
    model: Model, batches: Iterator[Batch], taps: Sequence[str], features: Features = "pooled"
) -> dict[str, Float[Tensor, "n d"]]:
    """The features of all images at some taps, one row an image, from one forward; `logits` is a tap too. On the CPU, float32."""
    found: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    with quietly(model), torch.no_grad(), ExitStack() as stack:
        reading = {tap: stack.enter_context(model.reading(tap)) for tap in taps if tap != "logits"}
        for batch in batches:
            logits = model.logits(batch.images)
            for tap, rows in found.items():
                made = logits if tap == "logits" else as_rows(grid(reading[tap].take(), model.size), features)
                rows.append(made.float().cpu())
    return {tap: torch.cat(rows) for tap, rows in found.items()}
