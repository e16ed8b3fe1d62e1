"""Localisation: how much of a map lies on the evidence, for data sets with masks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.explain.maps import empty, strength
from distilens.models.grids import resized


def energy_in_mask(maps: Float[Tensor, "b h w"], masks: Float[Tensor, "b h2 w2"]) -> Float[Tensor, " b"]:
    """The share of a map's strength on the evidence, in [0, 1]; higher is better; NaN for an empty map.

    A uniform map scores the mask's share of the image.

    Source: Wang et al. 2020 (arXiv 1910.01279), section 4.3.
    """
    fine = strength(resized(maps.abs(), (masks.shape[-2], masks.shape[-1])))
    return torch.where(empty(maps), torch.nan, (fine * masks).sum((1, 2)))


def pointing_game(maps: Float[Tensor, "b h w"], masks: Float[Tensor, "b h2 w2"]) -> Float[Tensor, " b"]:
    """The pointing game: 1 if the map's largest value lies on the evidence (at the mask's resolution), else 0.

    Higher is better. An empty map or a mask without evidence gives NaN (Quantus 0.6 counts the latter as a hit). There is no
    tolerance around the mask; the paper takes 15 pixels at 224.

    Source: Zhang et al. 2016 (arXiv 1608.00507), section 4.2.
    """
    largest = resized(maps, (masks.shape[-2], masks.shape[-1])).flatten(1).argmax(1)
    hit = masks.flatten(1).gather(1, largest[:, None])[:, 0] > 0.5
    unknown = empty(maps) | (masks.amax((1, 2)) <= 0.5)
    return torch.where(unknown, torch.nan, hit.to(maps.dtype))
