"""What a model says of images of which a part is hidden: what the model-agnostic explainers have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.core import Model
from distilens.explain.path import blocks, rows_at_once

Masks = Callable[[int, int], Float[Tensor, "m h w"]]
"""Masks number `start` to `stop`: 1 where the image is seen, 0 where it is hidden."""


def seen_through(
    model: Model,
    images: Float[Tensor, "b c h w"],
    fill: Float[Tensor, "#b c #h #w"],
    masks: Masks,
    count: int,
    score: Callable[[Float[Tensor, "r classes"], Int[Tensor, " r"]], Float[Tensor, " r"]],
    target: Int[Tensor, " b"],
    *,
    chunk: int | None,
) -> Float[Tensor, "b m"]:
    """The score of every image behind every mask, `chunk` rows (images times masks) at a time; hidden pixels are `fill`."""
    found = images.new_empty(len(images), count)
    path = images - fill
    for some, few in blocks(len(images), count, rows_at_once(images, chunk, recorded=False)):
        shown = masks(few.start, few.stop).to(images)[:, None]
        rows = torch.addcmul(fill.expand_as(images)[some, None], path[some, None], shown).flatten(0, 1)
        aims = target[some].repeat_interleave(len(shown))
        found[some, few] = score(model.logits(rows), aims).view(-1, len(shown)).to(found.dtype)
    return found
