"""What a model says of images of which a part is hidden: what the model-agnostic explainers have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.core import Model

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
    chunk: int,
) -> Float[Tensor, "b m"]:
    """The score of every image behind every mask, `chunk` rows (images times masks) at a time; hidden pixels are `fill`."""
    found = images.new_empty(len(images), count)
    many = max(1, chunk // len(images))  # masks at a time
    path = images - fill
    for start in range(0, count, many):
        shown = masks(start, min(start + many, count)).to(images)[None, :, None]
        for some in torch.arange(len(images), device=images.device).split(chunk):
            rows = (fill.expand_as(images)[some, None] + shown * path[some, None]).flatten(0, 1)
            aims = target[some].repeat_interleave(shown.shape[1])
            found[some, start : start + many] = score(model.logits(rows), aims).view(len(some), -1)
    return found
