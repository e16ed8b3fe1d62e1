"""Attention maps: the strength of the features at each place, the same for every class; used by attention transfer."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens.explain.activation import FeatureMap
from distilens.models.taps import LAST


class Attention(FeatureMap):
    """Attention map: how strong the features are at each place, the same for every class, without gradients.

    `M = mean_k |A_k|^p` over the channels of the features at a tap. The map is not negative. It has a derivative everywhere for
    `p > 1`.

    Args:
        tap: by default the last feature map; `last-1` is the last feature map on the next finer grid, and so on.
        power: `p`. With a larger `p`, the strongest channels count more.

    Source: Zagoruyko and Komodakis 2017 (arXiv 1612.03928), section 3.1, which sums over channels; the published code takes the
    mean. The factor makes no difference to the uses of the map.
    """

    def __init__(self, *, tap: str = LAST, power: Annotated[float, Field(gt=0)] = 2.0):
        super().__init__(tap=tap)
        self.power = power

    def read_off(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        return attention(feature, self.power)


def attention(feature: Float[Tensor, "b c h w"], power: float = 2.0) -> Float[Tensor, "b h w"]:
    """`mean_k |A_k|^p` over the channels."""
    return (feature.square() if power == 2 else feature.abs() ** power).mean(1)
