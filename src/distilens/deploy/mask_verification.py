"""Verify an exported segmentation against the student: the same masks, the same logits, the same mIoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from distilens.data.splits import Split
from distilens.deploy.exporters import FileModel, RuntimeNetwork, named_outputs
from distilens.deploy.shipped import at_size, mask_of
from distilens.foundation import bootstrap
from distilens.measure.accuracies import evaluation_batches
from distilens.measure.places import counts_alike
from distilens.models.model import Model
from distilens.models.taps import evaluating

TIE = 1e-4
"""Two classes whose probabilities at a place differ by less are tied: a float file may order them differently."""


@dataclass(frozen=True)
class Compared:
    """How a file's answers to a batch differ from the student's, at the size of the file's input.

    Attributes:
        largest, mean: of the absolute differences of the logits.
        alike: per image: the number of places with the same class, and of all places.
        different: the images with a place of another class that is not a tie, or with a logit that is not finite.
    """

    largest: float
    mean: float
    alike: Float[np.ndarray, "b 2"]
    different: Bool[Tensor, " b"]


def compare_images(student: Model, file: Model, images: Float[Tensor, "b c h w"]) -> dict[str, Any]:
    """The comparison on images without targets; `file` is a file as a model (`exporters.as_model`)."""
    return summary([compare(student, images, file.size, *answers_of(file, images))])


def compare_split(student: Model, file: Model, split: Split) -> tuple[dict[str, Any], UInt8[Tensor, "n h w"]]:
    """The comparison on a whole split, and the file's classes at the places of the targets."""
    found, answers = [], []
    for batch in evaluation_batches(split, student.device):
        logits, mask = answers_of(file, batch.images)
        found.append(compare(student, batch.images, file.size, logits, mask))
        fits = mask.shape == batch.targets.shape
        answers.append(student.task.compact(mask if fits else logits, batch.targets))
    return summary(found), torch.cat(answers)


def answers_of(file: Model, images: Tensor) -> tuple[Float[Tensor, "b classes h w"], UInt8[Tensor, "b h w"]]:
    """The logits and the mask that a file gives; those of a plain model at its own size."""
    if isinstance(file, FileModel) and isinstance(file.network, RuntimeNetwork):
        outputs = named_outputs(file.network.runtime, file.prepare(images))
        return outputs["logits"], outputs["mask"]
    with evaluating(file), torch.no_grad():
        logits = at_size(file.logits(images), file.size)
    return logits, mask_of(logits)


def compare(student: Model, images: Tensor, size: tuple[int, int], logits: Tensor, mask: Tensor) -> Compared:
    """Compare logits and masks of a size with the student's."""
    with evaluating(student), torch.no_grad():
        ours = at_size(student.logits(images), size)
    apart = (ours.double() - logits.double()).abs()
    different = differing(ours, mask) | ~logits.isfinite().flatten(1).all(1)
    return Compared(float(apart.max()), float(apart.mean()), counts_alike(mask_of(ours), mask), different)


def differing(ours: Float[Tensor, "b classes h w"], mask: UInt8[Tensor, "b h w"]) -> Bool[Tensor, " b"]:
    """Which masks have a place with another class than the largest logit, unless the probabilities of both are tied."""
    answer, last = mask_of(ours), ours.shape[1] - 1
    probabilities = ours.double().softmax(1)
    chosen, other = (
        probabilities.gather(1, numbers.long().clamp_max(last)[:, None])[:, 0] for numbers in (answer, mask)
    )
    tied = (mask <= last) & (chosen - other <= TIE)
    return ((answer != mask) & ~tied).flatten(1).any(1)


def summary(found: Sequence[Compared]) -> dict[str, Any]:
    """The differences of all batches, as plain data.

    `largest` and `mean` are of the logits, `same mask` is the share of places with the same class (its interval is a bootstrap
    over images), and `different` is the number of images of `Compared.different`.
    """
    alike = np.concatenate([one.alike for one in found])
    counts = [len(one.alike) for one in found]
    return {
        "n": len(alike),
        "places": int(alike[:, 1].sum()),
        "largest": max(one.largest for one in found),
        "mean": float(np.average([one.mean for one in found], weights=counts)),
        "same mask": bootstrap.of_sums(alike, lambda sums: sums[..., 0] / sums[..., 1]).plain("share"),
        "different": sum(int(one.different.sum()) for one in found),
    }
