"""Similarity of two maps of the same image, computed on the coarser of their grids; 1 means equal."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from distilens.explain.maps import empty, normalise_maps
from distilens.foundation.estimate import mean_of
from distilens.models.grids import resized

Maps = Float[Tensor, "b h w"]
Others = Float[Tensor, "b h2 w2"]
Values = Float[Tensor, " b"]

WINDOW, DEVIATION = 11, 1.5  # SSIM's window and standard deviation, in cells of the grid


def cosine(maps: Maps, others: Others) -> Values:
    """The cosine between two maps, in [-1, 1]: 1 if they are equal up to scale, 0 if they share nothing; higher is closer.

    It is NaN if one of the two is empty: leave such pairs out of means, and count them.
    """
    first, second = flattened(maps, others)
    likeness = functional.cosine_similarity(first, second, dim=1, eps=0)
    return torch.where(empty(maps) | empty(others), torch.nan, likeness)


def pearson(maps: Maps, others: Others) -> Values:
    """Pearson's correlation between two maps, in [-1, 1]: 1 if they are equal up to scale and offset; higher is closer.

    It is NaN if one of the two is constant.
    """
    return correlation(*flattened(maps, others))


def spearman(maps: Maps, others: Others) -> Values:
    """Spearman's rank correlation between two maps, in [-1, 1]: 1 if both order the places alike; higher is closer.

    Ties share the mean of their ranks, as in scipy. It is NaN if one of the two is constant.
    """
    first, second = flattened(maps, others)
    return correlation(ranks(first), ranks(second)).to(maps.dtype)


def ssim(maps: Maps, others: Others) -> Values:
    """SSIM, the structural similarity of two maps, in [-1, 1]: compares means, variances and covariance in windows.

    `(2 m n + c1)(2 s_mn + c2) / ((m² + n² + c1)(s_m² + s_n² + c2))`, averaged over Gaussian windows of 11 cells and standard
    deviation 1.5 inside the map, with `c1 = 0.01²`, `c2 = 0.03²`. Each map is first scaled to [0, 1] by its own minimum and
    maximum. Smaller grids are enlarged to 11 cells bilinearly. Higher is closer. It is NaN if one of the two is constant.

    Source: Wang et al. 2004 (IEEE TIP 13, "Image quality assessment"), equation 13.
    """
    size = common(maps, others)
    large = (max(size[0], WINDOW), max(size[1], WINDOW))
    first, second = (resized(resized(values, size), large) for values in (maps, others))
    constant = (flat(first.flatten(1)) | flat(second.flatten(1)))[:, None, None, None]
    m, n = (normalise_maps(side - side.amin((1, 2), keepdim=True), signed=False)[:, None] for side in (first, second))
    at = torch.arange(WINDOW, device=maps.device) - (WINDOW - 1) / 2
    window = (-at.square() / (2 * DEVIATION**2)).exp()
    window = (window / window.sum()).to(m)

    def mean(values: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(values, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_m, mean_n = mean(m), mean(n)
    var_m, var_n, shared = mean(m * m) - mean_m**2, mean(n * n) - mean_n**2, mean(m * n) - mean_m * mean_n
    levels = (2 * mean_m * mean_n + 0.01**2) / (mean_m**2 + mean_n**2 + 0.01**2)
    similarity = levels * (2 * shared + 0.03**2) / (var_m + var_n + 0.03**2)
    return torch.where(constant, torch.nan, similarity).mean((1, 2, 3))


def top_intersection(maps: Maps, others: Others, *, share: float = 0.1) -> Values:
    """Intersection over union of the strongest `share` of places of two maps, in [0, 1]; higher is closer.

    Equal values rank in reading order. Unrelated maps score about `share / (2 - share)`. It is NaN if one of the two is empty.
    """
    first, second = flattened(maps, others)
    count = max(1, math.ceil(share * first.shape[1]))
    top = []
    for values in (first, second):
        order = values.sort(dim=1, descending=True, stable=True).indices[:, :count]
        top.append(torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True))
    overlap = (top[0] & top[1]).sum(1) / (top[0] | top[1]).sum(1)
    return torch.where(empty(maps) | empty(others), torch.nan, overlap)


def common(maps: Tensor, others: Tensor) -> tuple[int, int]:
    return min(maps.shape[-2], others.shape[-2]), min(maps.shape[-1], others.shape[-1])


def flattened(maps: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps on the coarser grid, one row per image."""
    size = common(maps, others)
    return resized(maps, size).flatten(1), resized(others, size).flatten(1)


def flat(values: Float[Tensor, "b n"]) -> Tensor:
    """Which rows are constant, up to rounding."""
    spread = values.amax(1) - values.amin(1)
    return spread <= 1e-6 * values.abs().amax(1)


def correlation(first: Float[Tensor, "b n"], second: Float[Tensor, "b n"]) -> Values:
    constant = flat(first) | flat(second)
    first, second = (values - values.mean(1, keepdim=True) for values in (first, second))
    return torch.where(constant, torch.nan, functional.cosine_similarity(first, second, dim=1, eps=0))


def ranks(values: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """The rank of every value in its row, from 0; ties share the mean of their ranks."""
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values.contiguous())
    upto = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + upto - 1).to(torch.float64) / 2


def mean_interval(values: Float[Tensor, " n"]) -> dict[str, float | int | None]:
    """Mean and 95 % interval over images (normal approximation); NaN values are left out and counted as `empty`."""
    return mean_of(values).plain()
