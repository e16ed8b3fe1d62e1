"""How often a model is right, and how often two models say the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.core import Batch, Model
from distilens.models.objects import takes_modules
from distilens.taps import evaluating


class Share(TypedDict):
    """A share of images in [0, 1], with n and its 95 % interval."""

    accuracy: float
    n: int
    low: float
    high: float


@takes_modules
def predict(model: Model, batches: Iterable[Batch]) -> Float[Tensor, "n classes"]:
    """The logits of all images, in order, float32 on the CPU; the model is left in the mode it was in."""
    with evaluating(model), torch.inference_mode():
        return torch.cat([model.logits(batch.images).float().cpu() for batch in batches])


def share(hits: Tensor) -> Share:
    """How many of some yes-or-no outcomes are yes; Wilson's interval (scipy), which stays inside [0, 1]."""
    from scipy.stats import binomtest

    n, count = len(hits), int(hits.sum())
    interval = binomtest(count, n).proportion_ci(method="wilson")
    return Share(accuracy=count / n, n=n, low=float(interval.low), high=float(interval.high))


def accuracy(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Share | None:
    """The share of labelled images whose top class is the label; None without labels. Higher is better."""
    known = labels >= 0
    return share(logits[known].argmax(1) == labels[known]) if known.any() else None


def by_class(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], names: Sequence[str]
) -> dict[str, Share | None]:
    """The accuracy on the images of each class (its recall); None for a class without images."""
    right = logits.argmax(1) == labels
    return {
        name: share(right[labels == number]) if (labels == number).any() else None for number, name in enumerate(names)
    }


def balanced(classes: Mapping[str, Share | None]) -> float | None:
    """The mean of the classes' accuracies: a rare class counts as much as a common one. Guessing one class gives 1 / classes."""
    known = [found["accuracy"] for found in classes.values() if found is not None]
    return sum(known) / len(known) if known else None


def commonest(labels: Int[Tensor, " n"], names: Sequence[str]) -> dict[str, Any] | None:
    """The class with the most images and its share of those with a label: what guessing it would give."""
    known = labels[labels >= 0]
    if not len(known):
        return None
    counts = torch.bincount(known, minlength=len(names))
    return {"class": names[int(counts.argmax())], "share": int(counts.max()) / len(known), "n": len(known)}


def agreement(logits: Float[Tensor, "n classes"], teacher: Float[Tensor, "n classes"]) -> Share:
    """The share of images on which a model's top class is the teacher's, right or wrong. Higher is closer."""
    return share(logits.argmax(1) == teacher.argmax(1))
