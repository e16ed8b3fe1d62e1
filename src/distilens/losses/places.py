"""Steps that the losses of dense answers share: means over places, targets on another grid, directions."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from distilens.tasks.segmentation import VOID, check_targets, mean_where

NONE = -1
"""The class of a place without a target."""
SHORT = 1e-6
"""A vector with a smaller length has no direction."""


def per_image(
    values: Float[Tensor, " b *places"], valid: Bool[Tensor, " b *places"] | None = None
) -> Float[Tensor, " b"]:
    """The mean over an image's places; with `valid`, over those places only, and 0 if there is none.

    One number per image, `[b]`, is returned unchanged.
    """
    if values.ndim == 1:
        return values if valid is None else values.where(valid, 0)
    return values.flatten(1).mean(1) if valid is None else mean_where(values, valid)


def classes_on_grid(targets: UInt8[Tensor, "b h w"], outputs: Float[Tensor, "b c i j"]) -> Int[Tensor, "b i j"]:
    """The classes of the places of another grid: of the nearest pixel; -1 for void.

    The centre of each place decides, as in a bilinear resizing with `align_corners=False`.

    Raises:
        UserError: there is not one mask per image, or (on the CPU) a value is neither a class nor void.
    """
    check_targets(targets, outputs)
    return nearest(targets, outputs)


def nearest(targets: UInt8[Tensor, "b h w"], grid: Float[Tensor, "b c i j"]) -> Int[Tensor, "b i j"]:
    """`classes_on_grid` for outputs that are not logits, so that their channels are not classes."""
    rows, columns = (centres(targets.shape[axis], grid.shape[axis], targets.device) for axis in (-2, -1))
    classes = targets[:, rows][:, :, columns].long()
    return classes.masked_fill(classes == VOID, NONE)


def centres(size: int, places: int, device: torch.device) -> Int[Tensor, " places"]:
    """The pixel, of `size` in a row, under the centre of each of some places."""
    return (2 * torch.arange(places, device=device) + 1) * size // (2 * places)


def directions(vectors: Float[Tensor, "b c *places"]) -> Float[Tensor, "b c *places"]:
    """Vectors over axis 1 with length 1. A vector shorter than 1e-6 becomes 0, without a gradient."""
    long = vectors.detach().norm(dim=1, keepdim=True) > SHORT
    safe = vectors.where(long, 1)
    return (safe / safe.norm(dim=1, keepdim=True)).where(long, 0)
