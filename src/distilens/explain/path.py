"""Gradients at many points for each image, added up: what the gradient explainers have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distilens.core import Model
from distilens.errors import UserError
from distilens.explain.activation import no_gradient
from distilens.explain.explanation import explaining, scores_of
from distilens.taps import INPUT

Points = Callable[[Int[Tensor, " r"], Int[Tensor, " r"]], tuple[Float[Tensor, "r c h w"], Tensor]]
"""Of image numbers and step numbers, the points at which to differentiate, and the factor of each gradient."""


def summed_gradients(
    model: Model,
    images: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"],
    points: Points,
    steps: int,
    *,
    chunk: int,
    create_graph: bool = False,
) -> Float[Tensor, "b c h w"]:
    """`sum_s f_s * d y_c(p_s) / d p` for every image, `chunk` rows (images times steps) at a time.

    Memory does not grow with `steps`: with `create_graph` each chunk is computed again in the backward pass rather than kept.
    """

    def part(image: Tensor, step: Tensor) -> Tensor:
        with explaining(model):
            at, factor = points(image, step)
            at = at.requires_grad_() if at.is_leaf else at
            score = scores_of(model.logits(at), target[image]).sum()
            try:
                (gradient,) = torch.autograd.grad(score, at, create_graph=create_graph)
            except RuntimeError as error:
                raise UserError(no_gradient(model, [INPUT])) from error
            return factor * gradient

    total = torch.zeros_like(images)
    for first in range(0, len(images) * steps, chunk):
        row = torch.arange(first, min(first + chunk, len(images) * steps), device=images.device)
        image, step = row // steps, row % steps
        if create_graph:
            total = total.index_add(0, image, checkpoint(part, image, step, use_reentrant=False))
        else:
            total.index_add_(0, image, part(image, step))
    return total
