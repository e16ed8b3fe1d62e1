"""What was passed on, in numbers: how alike models' features are (FSS), and how much they say of the task (RS), tap by tap."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distilens import draws
from distilens.core import Batch, Model
from distilens.data.batches import Batches
from distilens.data.subset import Split
from distilens.errors import UserError
from distilens.explain.explanation import quietly
from distilens.measure.distance_correlation import (
    Dependence,
    Distances,
    Representation,
    dependence,
    distance_correlation,
)
from distilens.measure.scores import EVALUATION_BATCH
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


NAMED = {("student", "base"): "distilled", ("base", "student"): "residual", ("teacher", "student"): "missed"}
"""What is in one model's features and not in another's: brought by distillation, lost by it or never had, left to learn."""


def compare_models(
    models: Mapping[str, Model],
    split: Split,
    taps: Mapping[str, Sequence[str]],
    *,
    embeddings: Float[Tensor, "classes e"] | None = None,
    samples: int = 2000,
    features: Features = "pooled",
    full: bool = False,
    permutations: int = 0,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """FSS of each pair of models and RS of each, alone and given each other, at each level of taps, as plain data.

    Args:
        models: two or more, by name; those called teacher, base and student have what they share named.
        split: whose images; as many of each class as there are, `samples` in all.
        taps: of each model, as many: the first ones are compared with each other, then the second ones, and so on.
        embeddings: of each class, a row: what the task is; one-hot by default.
        full: the other model's features are removed from the task too.

    Raises:
        UserError: one model, taps that do not pair up, images of one class, embeddings of another number of classes.
    """
    if len(models) < 2:
        raise UserError(f"two models or more are compared; given {', '.join(models) or 'none'}")
    if len({len(taps[name]) for name in models}) > 1:
        listed = "; ".join(f"{name}: {', '.join(taps[name])}" for name in models)
        raise UserError(f"the models' taps are compared in their order, so each has as many; given {listed}")
    classes = len(next(iter(models.values())).classes)
    if embeddings is not None and len(embeddings) != classes:
        raise UserError(
            f"embeddings of {len(embeddings)} classes, and the data have {classes}: one row a class, in their order"
        )
    some = dataclasses.replace(split, index=split.index[balanced(split.labels, samples)])
    labels = torch.from_numpy(some.labels)
    task = Distances(embedded(labels, classes) if embeddings is None else embeddings.double()[labels])
    rows = {}
    for name, model in models.items():
        say(f"features of {name}")
        rows[name] = features_at(
            model, iter(Batches(some, EVALUATION_BATCH, device=model.device)), taps[name], features
        )
    levels = []
    for number, each in enumerate(zip(*(taps[name] for name in models), strict=True)):
        at = dict(zip(models, each, strict=True))
        say(f"scores at {', '.join(dict.fromkeys(each))}")
        spaces = {name: Distances(rows[name][taps[name][number]]) for name in models}
        alike = [
            {
                "of": x,
                "to": y,
                **plain(fss(spaces[x], spaces[y], permutations=permutations)),
                "cka": cka(rows[x][at[x]], rows[y][at[y]]),
            }
            for x, y in itertools.combinations(models, 2)
        ]
        alone = [{"of": x, **plain(rs(spaces[x], task, permutations=permutations))} for x in models]
        left = [
            {
                "of": x,
                "given": y,
                "called": NAMED.get((x, y)),
                **plain(rs(spaces[x], task, spaces[y], full=full, permutations=permutations)),
            }
            for x, y in itertools.permutations(models, 2)
        ]
        levels.append({"taps": at, "fss": alike, "rs": alone, "given": left})
    return {
        "n": len(some),
        "features": features,
        "full": full,
        "task": "one-hot" if embeddings is None else "embeddings",
        "levels": levels,
    }


def plain(found: Dependence) -> dict[str, Any]:
    """As JSON has it."""
    values = asdict(found) | {"notes": list(found.notes)}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def balanced(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` positions at most, as many of each class, drawn once and for all; in order. Images without a label are left out.

    Raises:
        UserError: all images have the same label, or none.
    """
    present = np.unique(labels[labels >= 0])
    if len(present) < 2:
        raise UserError(
            f"the images have {len(present)} class{'es' * (len(present) != 1)}: what features say of a task takes two"
        )
    order = torch.randperm(len(labels), generator=draws.generator("balanced", seed)).numpy()
    each = count // len(present)
    picked = [order[labels[order] == label][:each] for label in present]
    if each < 2:
        raise UserError(f"{count} images of {len(present)} classes: take {2 * len(present)} or more")
    fewest = min(len(some) for some in picked)
    return np.sort(np.concatenate([some[:fewest] for some in picked]))
