"""Sparsity: whether a map is concentrated in few places."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.explain.maps import empty, strength


def sparseness(maps: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """The Gini index of a map's strength, in [0, 1): 0 if all places count equally, near 1 if one place holds everything.

    `G = sum_i (2 i - n - 1) v_i / (n sum v)`, with the absolute values `v` in ascending order. Neither end is better in itself.
    An empty map gives NaN.

    Source: Hurley and Rickard 2009 (arXiv 0811.4706), table II; for maps Chalasani et al. 2020 (arXiv 1810.06583).
    """
    values = strength(maps).flatten(1).sort(dim=1).values
    n = values.shape[1]
    place = 2 * torch.arange(1, n + 1, device=maps.device) - n - 1
    return torch.where(empty(maps), torch.nan, (place * values).sum(1) / n)


def complexity(maps: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """The entropy of a map's strength, in [0, 1]: 0 for a single place, 1 for a uniform map. Lower is simpler.

    `H = -sum p log p / log n`, where `p` are the absolute values as shares of their sum, and `n` is the number of places. Neither
    end is better in itself. An empty map gives NaN.

    Source: Bhatt et al. 2020 (arXiv 2005.00631), definition 4, which does not divide by `log n`.
    """
    shares = strength(maps).flatten(1)
    entropy = torch.special.entr(shares).sum(1) / math.log(max(2, shares.shape[1]))
    return torch.where(empty(maps), torch.nan, entropy)
