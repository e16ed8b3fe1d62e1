"""Gradients summed over many points per image: the shared part of the gradient explainers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distilens.explain.activation import no_gradient, reaching
from distilens.explain.explanation import Aim, at_rows, explaining, scores_of
from distilens.foundation.errors import UserError
from distilens.models.model import Model
from distilens.models.taps import INPUT

Points = Callable[[slice, slice], tuple[Float[Tensor, "i s c h w"], Tensor]]
"""From a slice of images and a slice of steps: the points at which to differentiate, and the factors of their gradients."""


def summed_gradients(
    model: Model,
    images: Float[Tensor, "b c h w"],
    target: Aim,
    points: Points,
    steps: int,
    *,
    chunk: int | None,
    create_graph: bool = False,
) -> Float[Tensor, "b c h w"]:
    """`sum_s f_s * d y_c(p_s) / d p` for every image, `chunk` rows (images times steps) at a time.

    Memory does not grow with `steps`: with `create_graph` the backward pass computes each chunk again (checkpointing).
    """

    def part(images: slice, steps: slice) -> Tensor:
        with explaining(model):
            at, factor = points(images, steps)
            rows = at.flatten(0, 1)
            rows = rows if rows.requires_grad else rows.requires_grad_()
            aims = at_rows(target, images, at.shape[1])
            scores = scores_of(model.logits(rows), aims, model.task)
            gradients = reaching(scores.sum(), [rows], create_graph=create_graph)
            if gradients is None:
                raise UserError(no_gradient(model, [INPUT]))
            return (factor * gradients[0].view(at.shape)).sum(1)

    total = torch.zeros_like(images)
    for rows, few in blocks(len(images), steps, rows_at_once(images, chunk)):
        if create_graph:
            piece = checkpoint(part, rows, few, use_reentrant=False)
            number = torch.arange(rows.start, rows.stop, device=images.device)
            total = total.index_add(0, number, piece)  # type: ignore[arg-type]
        else:
            total[rows] += part(rows, few)
    return total


def blocks(images: int, steps: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Cut `images × steps` into blocks of at most `rows` rows: first as many images as fit, then as many steps."""
    for first in range(0, images, rows):
        part = slice(first, min(first + rows, images))
        few = max(1, rows // (part.stop - part.start))
        for start in range(0, steps, few):
            yield part, slice(start, min(start + few, steps))


def rows_at_once(images: Tensor, chunk: int | None, *, recorded: bool = True) -> int:
    """The number of images per forward pass: `chunk`, or the fastest number for their size.

    On a CPU the batch should fit in the cache: 64 images of 32 × 32 with a graph, 32 without (measured with ResNet-20 and
    MobileNetV2), 8 of 224 × 224. A GPU takes more.
    """
    if chunk is not None:
        return chunk
    if images.device.type == "cpu":
        pixels, least, most = (2**16, 8, 64) if recorded else (2**15, 8, 32)
    else:
        pixels, least, most = 2**23, 32, 1024
    return min(most, max(least, pixels // (images.shape[2] * images.shape[3])))
