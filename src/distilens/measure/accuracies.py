"""Accuracy and agreement: shares of images with their intervals, as plain data for `scores.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from distilens.data.batch import Batch
from distilens.data.pipeline import Batches
from distilens.data.splits import Split
from distilens.foundation import estimate
from distilens.foundation.estimate import share_of
from distilens.models.model import Model
from distilens.models.objects import takes_modules
from distilens.models.taps import evaluating
from distilens.tasks.classification import right

EVALUATION_BATCH = 500
"""The number of images per forward pass where models are measured."""

DENSE_PLACES = 2**20
"""In a dense task: about the number of places of the images in one forward pass."""


class Share(TypedDict):
    """A share of images in [0, 1], with n and its 95 % interval."""

    accuracy: float
    n: int
    low: float
    high: float


def evaluation_batches(split: Split, device: torch.device) -> Batches:
    """All images of a split, unchanged and in order, as models are measured on them."""
    height, width = split.rows.images.shape[1:3]
    size = max(1, DENSE_PLACES // (height * width)) if split.task.dense else EVALUATION_BATCH
    return Batches(split, min(size, EVALUATION_BATCH), device=device)


@takes_modules
def predict(model: Model, batches: Iterable[Batch]) -> Float[Tensor, "n classes"] | UInt8[Tensor, "n h w"]:
    """The answers to all images, in order, on the CPU; the model's mode does not change.

    In classification these are the logits, float32. In a dense task they are the classes at the places of the targets
    (`Task.compact`), as the logits of a whole split would not fit in memory.
    """
    with evaluating(model), torch.inference_mode():
        return torch.cat(
            [model.task.compact(model.logits(batch.images).float(), batch.targets).cpu() for batch in batches]
        )


def share(hits: Tensor) -> Share:
    """The share of true outcomes, with Wilson's interval, which stays inside [0, 1]."""
    return cast(Share, share_of(hits).plain("accuracy"))


def share_apart(one: Bool[Tensor, " n"], other: Bool[Tensor, " n"]) -> dict[str, Any] | None:
    """The difference of two shares of hits, `one` minus `other`, in [-1, 1]; None without images.

    It is `mean`, its 95 % interval (`low`, `high`), and `n`: see `distilens.foundation.estimate.share_apart`.
    """
    apart = estimate.share_apart(one, other)
    return apart and apart.plain()


def accuracy(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Share | None:
    """The share of labelled images whose top class is the label; None without labels. Higher is better."""
    known = labels >= 0
    return share(right(logits[known], labels[known])) if known.any() else None


def top_k(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], k: int) -> Share | None:
    """The share of labelled images whose label is among the k top classes; None without labels. Higher is better."""
    known = labels >= 0
    return share(among_top(logits[known], labels[known], k)) if known.any() else None


def among_top(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], k: int) -> Bool[Tensor, " n"]:
    """Whether the label of each image is among the k top classes; logits with a NaN are never right."""
    return logits.topk(k).indices.eq(labels[:, None]).any(1) & ~logits.isnan().any(1)


def by_class(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], names: Sequence[str]
) -> dict[str, Share | None]:
    """The accuracy per class (its recall); None for a class without images."""
    hits = right(logits, labels)
    return {
        name: share(hits[labels == number]) if (labels == number).any() else None for number, name in enumerate(names)
    }


def balanced(classes: Mapping[str, Share | None]) -> float | None:
    """The mean of the classes' accuracies: a rare class counts as much as a common one. Guessing one class gives 1 / classes."""
    known = [hits["accuracy"] for hits in classes.values() if hits is not None]
    return sum(known) / len(known) if known else None


def commonest(labels: Int[Tensor, " n"], names: Sequence[str]) -> dict[str, Any] | None:
    """The most frequent class and its share of the labelled images: the accuracy of always guessing it."""
    known = labels[labels >= 0]
    if not len(known):
        return None
    counts = torch.bincount(known, minlength=len(names))
    return {"class": names[int(counts.argmax())], "share": int(counts.max()) / len(known), "n": len(known)}


def agreement(logits: Float[Tensor, "n classes"], teacher: Float[Tensor, "n classes"]) -> Share:
    """The share of images on which the model's top class equals the teacher's, right or wrong. Higher is closer."""
    return share(logits.argmax(1) == teacher.argmax(1))
