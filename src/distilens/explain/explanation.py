"""What an explainer returns, and what all explainers share: the scalar that they differentiate, and the quiet around them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.core import Model
from distilens.errors import UserError
from distilens.taps import evaluating


@dataclass(frozen=True)
class Explanation:
    """Maps, raw and float32, and what they explain.

    Attributes:
        maps: one per image; the explainer's docstring says whether they are signed.
        logits: of the same forward.
        target: the class that each map explains.
        residual: how far the map misses the explainer's own promise (completeness, for Integrated Gradients), in logits.
    """

    maps: Float[Tensor, "b h w"]
    logits: Float[Tensor, "b classes"]
    target: Int[Tensor, " b"]
    residual: Float[Tensor, " b"] | None = None


def target_of(logits: Tensor, target: Tensor | None) -> Tensor:
    """The classes to explain: those given, else the model's own top-1.

    Raises:
        UserError: a class that the model does not have.
    """
    if target is None:
        return logits.detach().argmax(1)
    if target.numel() and not (int(target.min()) >= 0 and int(target.max()) < logits.shape[1]):
        given = f"{int(target.min())} to {int(target.max())}"
        raise UserError(f"targets must be classes from 0 to {logits.shape[1] - 1}; given {given}")
    return target


def scores_of(logits: Float[Tensor, "b classes"], target: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The scalar that is explained, one per image: the logit of the target class."""
    return logits.gather(1, target[:, None])[:, 0]


@contextlib.contextmanager
def quietly(model: Model) -> Iterator[None]:
    """Eval mode and float32 within; the model's modes, `.grad` and statistics are as before afterwards."""
    with evaluating(model), torch.autocast(model.device.type, enabled=False):
        yield


def in_chunks(
    explain: Callable[[Model, Tensor, Tensor | None], Explanation],
    model: Model,
    images: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"] | None = None,
    *,
    chunk: int = 64,
) -> Explanation:
    """Explain many images, some at a time, on the model's device; the result is on the CPU."""
    some = images.split(chunk)
    targets = [None] * len(some) if target is None else [part.to(model.device) for part in target.split(chunk)]
    parts = [explain(model, part.to(model.device), aim) for part, aim in zip(some, targets, strict=True)]
    residuals = [part.residual.cpu() for part in parts if part.residual is not None]
    return Explanation(
        torch.cat([part.maps.cpu() for part in parts]),
        torch.cat([part.logits.cpu() for part in parts]),
        torch.cat([part.target.cpu() for part in parts]),
        torch.cat(residuals) if residuals else None,
    )
