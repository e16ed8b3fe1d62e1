"""Maps as numbers to compare, and as pictures: resized to one grid, brought to one range, coloured over their image."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from distilens.colours import FLAT, MAP_WEIGHT, TABLE


def resized(maps: Float[Tensor, "*b h w"], size: tuple[int, int]) -> Float[Tensor, "*b h2 w2"]:
    """Maps on another grid: averaged over areas when shrinking, bilinear when growing."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    flat = maps.flatten(0, -3)[:, None]
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return functional.adaptive_avg_pool2d(flat, size).view(*maps.shape[:-2], *size)
    return functional.interpolate(flat, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)


def on_one_grid(
    ours: Float[Tensor, "*b h w"], theirs: Float[Tensor, "*d i j"], pool: int | None = None
) -> tuple[Float[Tensor, "*b k l"], Float[Tensor, "*d k l"]]:
    """Maps, or features, averaged to the smaller of their grids, or to `pool` cells along a side."""
    size = (min(ours.shape[-2], theirs.shape[-2]), min(ours.shape[-1], theirs.shape[-1]))
    size = size if pool is None else (pool, pool)
    return resized(ours, size), resized(theirs.to(ours), size)


def empty(maps: Float[Tensor, "*b h w"]) -> Bool[Tensor, "*b"]:
    """Maps that say nothing: zero everywhere. Left out of means, and counted."""
    return maps.abs().amax((-2, -1)) == 0


def strength(maps: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """How much each place matters, whatever its sign, as shares that sum to 1; an empty map stays 0."""
    size = maps.abs()
    return size / size.sum((-2, -1), keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)


def normalised(maps: Float[Tensor, "*b h w"], *, signed: bool) -> Float[Tensor, "*b h w"]:
    """Maps made fit to be drawn or thresholded: each from 0 to 1.

    Signed maps count by their size, others by their positive part; then (x - min) / (max - min) over each map. A map that says
    nothing of where (empty, flat, not finite) is 0 everywhere: stretched, it would show rounding noise as if it were evidence.
    """
    size = maps.abs() if signed else maps.clamp_min(0)
    low, high = size.amin((-2, -1), keepdim=True), size.amax((-2, -1), keepdim=True)
    spread = high - low
    says = (spread > FLAT * high) & spread.isfinite()  # a NaN compares as false
    return torch.where(says, (size - low) / torch.where(says, spread, 1), 0)


def overlay(
    images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b h2 w2"], *, signed: bool
) -> Float[Tensor, "b 3 h w"]:
    """Maps in colour (viridis: dark is weak, yellow is strong) over their greyed images, at the images' resolution, in [0, 1].

    Each map is on its own scale: see `normalised`. The image is grey so that colour means the map alone.
    """
    height, width = images.shape[-2:]
    strong = resized(normalised(maps.to(images), signed=signed), (height, width))
    colours = torch.from_numpy(TABLE).to(images) / 255
    coloured = colours[(strong * 255).round().long().clamp(0, 255)].permute(0, 3, 1, 2)
    grey = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)  # ITU-R BT.601
    return MAP_WEIGHT * coloured + (1 - MAP_WEIGHT) * grey.clamp(0, 1)
