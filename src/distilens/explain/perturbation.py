"""A model's scores for partly hidden images: the shared part of the perturbation explainers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.explain.explanation import Aim, at_rows
from distilens.explain.path import blocks, rows_at_once
from distilens.models.model import Model
from distilens.tasks import Task

Masks = Callable[[int, int], Float[Tensor, "m h w"]]
"""The masks from `start` to `stop`: 1 where the image is visible, 0 where it is hidden."""


def score_masked(
    model: Model,
    images: Float[Tensor, "b c h w"],
    fill: Float[Tensor, "#b c #h #w"],
    masks: Masks,
    count: int,
    score: Callable[[Tensor, Aim, Task], Float[Tensor, " r"]],
    target: Aim,
    *,
    chunk: int | None,
) -> Float[Tensor, "b m"]:
    """The score of every image behind every mask, `chunk` rows (images times masks) at a time; hidden pixels are `fill`."""
    scores = images.new_empty(len(images), count)
    path = images - fill
    for part, few in blocks(len(images), count, rows_at_once(images, chunk, recorded=False)):
        shown = masks(few.start, few.stop).to(images)[:, None]
        rows = torch.addcmul(fill.expand_as(images)[part, None], path[part, None], shown).flatten(0, 1)
        aims = at_rows(target, part, len(shown))
        scores[part, few] = score(model.logits(rows), aims, model.task).view(-1, len(shown)).to(scores.dtype)
    return scores
