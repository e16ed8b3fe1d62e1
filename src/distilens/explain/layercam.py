"""LayerCAM: features weighted by their positive gradients at each place."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens.explain.activation import ActivationMap


class LayerCAM(ActivationMap):
    """LayerCAM: features weighted by their own positive gradients; also useful at early taps, where maps are fine.

    `M = relu(sum_k relu(g_k) A_k)`, `g = d y_c / d A`. The map is not negative.

    Source: Jiang et al. 2021 (IEEE TIP 30, "LayerCAM"), equations 5 and 6.
    """

    def combine(self, feature: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        return (gradient.relu() * feature).sum(1).relu()
