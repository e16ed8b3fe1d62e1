"""Losses of labels: those of mixed images have the labels of two."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from distilens.core import Batch

DENSE = ("segmentation",)
"""The tasks of methods that need a class for each place."""


def of_labels(batch: Batch, against: Callable[[Tensor], Float[Tensor, " b"]]) -> Float[Tensor, " b"]:
    """The loss against the targets of a batch; for mixed images, the losses against both targets, weighted by their shares."""
    loss = against(batch.targets)
    if batch.mixed is None:
        return loss
    return batch.mixed.share * loss + (1 - batch.mixed.share) * against(batch.mixed.targets)
