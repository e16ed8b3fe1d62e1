"""How alike two models' maps are, and how much of a map lies on the evidence."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.explain.maps import empty, resized, strength


def cosine(maps: Float[Tensor, "b h w"], others: Float[Tensor, "b h2 w2"]) -> Float[Tensor, " b"]:
    """The cosine between two maps of the same images, on the coarser grid: 1 for the same up to scale, 0 for nothing shared.

    In [-1, 1]; NaN where one of the two is empty, which is to be left out and counted.
    """
    size = (min(maps.shape[-2], others.shape[-2]), min(maps.shape[-1], others.shape[-1]))
    first, second = resized(maps, size).flatten(1), resized(others, size).flatten(1)
    likeness = torch.nn.functional.cosine_similarity(first, second, dim=1, eps=0)
    return torch.where(empty(maps) | empty(others), torch.nan, likeness)


def energy_in_mask(maps: Float[Tensor, "b h w"], masks: Float[Tensor, "b h2 w2"]) -> Float[Tensor, " b"]:
    """The share of a map's strength that lies on the evidence, in [0, 1]; higher is better; NaN for an empty map.

    A map without any knowledge scores the mask's share of the image. Source: Wang et al. 2020 (arXiv 1910.01279), section 4.3.
    """
    fine = strength(resized(maps.abs(), (masks.shape[-2], masks.shape[-1])))
    return torch.where(empty(maps), torch.nan, (fine * masks).sum((1, 2)))


def mean_interval(values: Float[Tensor, " n"]) -> dict[str, float | int | None]:
    """Mean and 95 % interval over images (normal approximation), NaN left out and counted as `empty`."""
    kept = values[~values.isnan()].double()
    n = len(kept)
    if n == 0:
        return {"mean": None, "low": None, "high": None, "n": 0, "empty": len(values)}
    mean = float(kept.mean())
    half = 1.96 * float(kept.std()) / math.sqrt(n) if n > 1 else math.nan
    return {
        "mean": mean,
        "low": mean - half if n > 1 else None,
        "high": mean + half if n > 1 else None,
        "n": n,
        "empty": len(values) - n,
    }
