"""Resize features and maps from one spatial grid to another."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def resized(maps: Float[Tensor, "*b h w"], size: tuple[int, int]) -> Float[Tensor, "*b h2 w2"]:
    """Resize maps to another grid: average over areas when shrinking, bilinear when growing."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    flat = maps.flatten(0, -3)[:, None]
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return functional.adaptive_avg_pool2d(flat, size).view(*maps.shape[:-2], *size)
    return functional.interpolate(flat, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)


def on_one_grid(
    ours: Float[Tensor, "*b h w"], theirs: Float[Tensor, "*d i j"], pool: int | None = None
) -> tuple[Float[Tensor, "*b k l"], Float[Tensor, "*d k l"]]:
    """Average two maps or features to the smaller of their grids, or to `pool` cells along a side."""
    size = (min(ours.shape[-2], theirs.shape[-2]), min(ours.shape[-1], theirs.shape[-1]))
    size = size if pool is None else (pool, pool)
    return resized(ours, size), resized(theirs.to(ours), size)
