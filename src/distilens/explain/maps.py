"""Helpers for maps: empty maps, shares, scaling to [0, 1], and colour overlays."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distilens.models.grids import resized
from distilens.report.colours import FLAT, MAP_WEIGHT, TABLE


def empty(maps: Float[Tensor, "*b h w"]) -> Bool[Tensor, "*b"]:
    """Which maps are zero everywhere. Means leave them out and count them."""
    return maps.abs().amax((-2, -1)) == 0


def strength(maps: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """The absolute values as shares that sum to 1; an empty map stays 0."""
    size = maps.abs()
    return size / size.sum((-2, -1), keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)


def normalise_maps(maps: Float[Tensor, "*b h w"], *, signed: bool) -> Float[Tensor, "*b h w"]:
    """Maps scaled to [0, 1], each on its own, to be drawn or thresholded.

    Takes the absolute values of signed maps and the positive part of others, then (x - min) / (max - min) per map. A map without
    information (empty, flat, not finite) becomes 0 everywhere: scaled, its rounding noise would look like evidence.
    """
    size = maps.abs() if signed else maps.clamp_min(0)
    low, high = size.amin((-2, -1), keepdim=True), size.amax((-2, -1), keepdim=True)
    spread = high - low
    says = (spread > FLAT * high) & spread.isfinite()  # a NaN compares as false
    return torch.where(says, (size - low) / torch.where(says, spread, 1), 0)


def overlay(
    images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b h2 w2"], *, signed: bool
) -> Float[Tensor, "b 3 h w"]:
    """Maps in colour (viridis: dark is weak, yellow is strong) over their grey images, at the images' resolution, in [0, 1].

    Each map has its own scale: see `normalise_maps`. The image is grey, so colour shows the map only.
    """
    height, width = images.shape[-2:]
    strong = resized(normalise_maps(maps.to(images), signed=signed), (height, width))
    colours = torch.from_numpy(TABLE).to(images) / 255
    coloured = colours[(strong * 255).round().long().clamp(0, 255)].permute(0, 3, 1, 2)
    grey = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)  # ITU-R BT.601
    return MAP_WEIGHT * coloured + (1 - MAP_WEIGHT) * grey.clamp(0, 1)
