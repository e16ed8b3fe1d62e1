"""Maps as numbers to compare: resized to one grid, brought to one range."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def resized(maps: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b h2 w2"]:
    """Maps on another grid: averaged over areas when shrinking, bilinear when growing."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return functional.adaptive_avg_pool2d(maps[:, None], size)[:, 0]
    return functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def empty(maps: Float[Tensor, "b h w"]) -> Bool[Tensor, " b"]:
    """Maps that say nothing: zero everywhere. Left out of means, and counted."""
    return maps.abs().amax((1, 2)) == 0


def strength(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """How much each place matters, whatever its sign, as shares that sum to 1; an empty map stays 0."""
    size = maps.abs()
    return size / size.sum((1, 2), keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
