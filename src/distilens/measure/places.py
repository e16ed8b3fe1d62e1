"""Scores of a segmentation beside its mIoU: by class, Dice, pixel accuracy, contours, agreement with the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from distilens.foundation import bootstrap
from distilens.foundation.estimate import Estimate
from distilens.tasks import VOID, Segmentation

TOLERANCE = 0.0075
"""How far two contours may lie apart, as a share of the image's diagonal: the value of Csurka et al. and of DAVIS."""

Masks = UInt8[Tensor, "n h w"]


def score_places(task: Segmentation, answers: Mapping[str, Masks], targets: Masks, model: str) -> dict[str, Any]:
    """The scores of one model on the test split, as plain data for `scores.json`; intervals are over images.

    `by class` is the IoU of each class, None for a class that is absent from targets and predictions. `absent` counts these.
    """
    ours = answers[model]
    measured, classes = task.measure(ours, targets), task.measure_classes(ours, targets)
    absent = [name for name, estimate in classes.items() if estimate.value is None]
    return {
        "by class": {
            name: None if name in absent else estimate.plain("accuracy") for name, estimate in classes.items()
        },
        "absent": absent,
        "dice": measured["dice"].plain("accuracy"),
        "pixel accuracy": measured["pixel accuracy"].plain("accuracy"),
        "boundary F": boundary_score(ours, targets, task.outputs).plain("accuracy"),
        "agreement": same_answers(ours, answers["teacher"]).plain("accuracy")
        if "teacher" in answers and model != "teacher"
        else None,
    }


def places_apart(answers: Mapping[str, Masks], targets: Masks) -> dict[str, Any]:
    """The differences of student and base on the same images."""
    if "teacher" not in answers:
        return {"agreement": None}
    ours, others = (counts_alike(answers[model], answers["teacher"]) for model in ("student", "base"))
    both = np.concatenate([ours, others], 1)
    apart = bootstrap.of_sums(both, lambda sums: sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3])
    return {"agreement": apart.plain()}


def same_answers(ours: Masks, theirs: Masks) -> Estimate:
    """The share of places with the same class, with a bootstrap over images. Void places count, as models answer there too."""
    return bootstrap.of_sums(counts_alike(ours, theirs), lambda sums: sums[..., 0] / sums[..., 1])


def counts_alike(ours: Masks, theirs: Masks) -> Float[np.ndarray, "n 2"]:
    """Per image: the number of places with the same class, and of all places."""
    same = (ours == theirs).flatten(1)
    return torch.stack([same.sum(1), same.new_full((len(same),), same.shape[1], dtype=torch.long)], 1).double().numpy()


def boundary_score(answers: Masks, targets: Masks, classes: int) -> Estimate:
    """The F score of contours: per image the mean over the classes that are there or predicted, then the mean over images.

    A predicted contour is right where the target's contour is at most 0.75 % of the diagonal away (and reversed for recall);
    `F = 2 precision recall / (precision + recall)`. Void places are left out of both masks. The interval is a bootstrap over
    images.

    Source: Csurka et al. 2013 (BMVC), section 2.3; Perazzi et al. 2016 (DAVIS) for the tolerance.
    """
    height, width = targets.shape[1:]
    reach = max(1, round(TOLERANCE * float(np.hypot(height, width))))
    values = []
    for answer, target in zip(answers, targets, strict=True):
        known = target != VOID
        if known.any():
            values.append(contours_score(answer, target, known, classes, reach))
    rows = np.array([[value, 1.0] for value in values if not np.isnan(value)]).reshape(-1, 2)
    return bootstrap.of_sums(rows, lambda sums: sums[..., 0] / sums[..., 1])


def contours_score(answer: Tensor, target: Tensor, known: Tensor, classes: int, reach: int) -> float:
    """The mean F score of the contours of one image; NaN if no class has a contour."""
    there = torch.cat([answer[known], target[known]]).unique().tolist()
    numbers = torch.tensor([number for number in there if number < classes])
    if not len(numbers):
        return float("nan")
    masks = [(mask[None] == numbers[:, None, None]) & known for mask in (answer, target)]
    ours, theirs = (contours(mask) for mask in masks)
    right = (ours & grown(theirs, reach)).flatten(1).sum(1) / ours.flatten(1).sum(1)
    found = (theirs & grown(ours, reach)).flatten(1).sum(1) / theirs.flatten(1).sum(1)
    both_flat = right.isnan() & found.isnan()  # neither mask has a contour: the class fills the image in both
    right, found = right.nan_to_num(0), found.nan_to_num(0)
    score = torch.where(right + found > 0, 2 * right * found / (right + found), 0)
    return float(score[~both_flat].mean()) if not both_flat.all() else float("nan")


def contours(masks: Bool[Tensor, "c h w"]) -> Bool[Tensor, "c h w"]:
    """The places of each mask that have a neighbour (of four) inside the image outside of the mask."""
    inside = functional.pad(masks.float()[:, None], (1, 1, 1, 1), mode="replicate")[:, 0] > 0
    whole = inside[:, 1:-1, :-2] & inside[:, 1:-1, 2:] & inside[:, :-2, 1:-1] & inside[:, 2:, 1:-1]
    return masks & ~whole


def grown(masks: Bool[Tensor, "c h w"], reach: int) -> Bool[Tensor, "c h w"]:
    """All places within `reach` places of a mask, in a straight line."""
    ways = torch.arange(-reach, reach + 1)
    disk = (ways[:, None].square() + ways.square() <= reach**2).float()[None, None]
    return functional.conv2d(masks.float()[:, None], disk, padding=reach)[:, 0] > 0.5
