"""How alike two maps of the same images are. All are computed on the coarser of the two grids; 1 is the same."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from distilens.explain.maps import empty, normalised, resized

Maps = Float[Tensor, "b h w"]
Others = Float[Tensor, "b h2 w2"]
Values = Float[Tensor, " b"]

WINDOW, DEVIATION = 11, 1.5  # of SSIM, in places of the grid


def cosine(maps: Maps, others: Others) -> Values:
    """The cosine between two maps: 1 for the same up to scale, 0 for nothing shared; higher is closer.

    In [-1, 1]; NaN where one of the two is empty, which is to be left out and counted.
    """
    first, second = flattened(maps, others)
    likeness = functional.cosine_similarity(first, second, dim=1, eps=0)
    return torch.where(empty(maps) | empty(others), torch.nan, likeness)


def pearson(maps: Maps, others: Others) -> Values:
    """The correlation between two maps: 1 for the same up to scale and level, 0 for none; higher is closer.

    In [-1, 1]; NaN where one of the two is constant.
    """
    return correlation(*flattened(maps, others))


def spearman(maps: Maps, others: Others) -> Values:
    """The correlation between the ranks of two maps: 1 where both order places alike, whatever their values; higher is closer.

    Ties share the mean of their ranks, as in scipy. In [-1, 1]; NaN where one of the two is constant.
    """
    first, second = flattened(maps, others)
    return correlation(ranks(first), ranks(second)).to(maps.dtype)


def ssim(maps: Maps, others: Others) -> Values:
    """The structural similarity of two maps: means, deviations and correlation in windows, averaged; higher is closer.

    `(2 m n + c1)(2 s_mn + c2) / ((m² + n² + c1)(s_m² + s_n² + c2))` in Gaussian windows of 11 places and deviation 1.5 that lie
    whole in the map, `c1 = 0.01²`, `c2 = 0.03²`, each map first brought to [0, 1] by its own least and largest value. Grids
    of less than 11 places are enlarged to 11 bilinearly. In [-1, 1]; NaN where one of the two is constant.

    Source: Wang et al. 2004 (IEEE TIP 13, "Image quality assessment"), equation 13.
    """
    size = common(maps, others)
    large = (max(size[0], WINDOW), max(size[1], WINDOW))
    first, second = (resized(resized(each, size), large) for each in (maps, others))
    constant = (flat(first.flatten(1)) | flat(second.flatten(1)))[:, None, None, None]
    m, n = (normalised(each - each.amin((1, 2), keepdim=True), signed=False)[:, None] for each in (first, second))
    at = torch.arange(WINDOW, device=maps.device) - (WINDOW - 1) / 2
    window = (-at.square() / (2 * DEVIATION**2)).exp()
    window = (window / window.sum()).to(m)

    def mean(values: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(values, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_m, mean_n = mean(m), mean(n)
    var_m, var_n, shared = mean(m * m) - mean_m**2, mean(n * n) - mean_n**2, mean(m * n) - mean_m * mean_n
    levels = (2 * mean_m * mean_n + 0.01**2) / (mean_m**2 + mean_n**2 + 0.01**2)
    found = levels * (2 * shared + 0.03**2) / (var_m + var_n + 0.03**2)
    return torch.where(constant, torch.nan, found).mean((1, 2, 3))


def top_intersection(maps: Maps, others: Others, *, share: float = 0.1) -> Values:
    """Do two maps find the same places strongest? Intersection over union of their strongest `share`; higher is closer.

    Of equal places, those come first that stand first. In [0, 1]; for unrelated maps about `share / (2 - share)`. NaN where
    one of the two is empty.
    """
    first, second = flattened(maps, others)
    count = max(1, math.ceil(share * first.shape[1]))
    top = []
    for values in (first, second):
        order = values.sort(dim=1, descending=True, stable=True).indices[:, :count]
        top.append(torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True))
    found = (top[0] & top[1]).sum(1) / (top[0] | top[1]).sum(1)
    return torch.where(empty(maps) | empty(others), torch.nan, found)


def common(maps: Tensor, others: Tensor) -> tuple[int, int]:
    return min(maps.shape[-2], others.shape[-2]), min(maps.shape[-1], others.shape[-1])


def flattened(maps: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the coarser grid, a row an image."""
    size = common(maps, others)
    return resized(maps, size).flatten(1), resized(others, size).flatten(1)


def flat(values: Float[Tensor, "b n"]) -> Tensor:
    """Rows that are constant, to rounding."""
    spread = values.amax(1) - values.amin(1)
    return spread <= 1e-6 * values.abs().amax(1)


def correlation(first: Float[Tensor, "b n"], second: Float[Tensor, "b n"]) -> Values:
    constant = flat(first) | flat(second)
    first, second = (values - values.mean(1, keepdim=True) for values in (first, second))
    return torch.where(constant, torch.nan, functional.cosine_similarity(first, second, dim=1, eps=0))


def ranks(values: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """The rank of every value in its row, from 0; ties share the mean of theirs."""
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values.contiguous())
    upto = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + upto - 1).to(torch.float64) / 2


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
