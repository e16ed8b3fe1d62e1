"""Where in a feature map a class is found: channels weighted by their mean gradient."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, einsum

from distilens.explain.activation import ActivationMap


class GradCAM(ActivationMap):
    """Where the features that speak for a class stand: channel weights from gradients, at a tap's resolution.

    `M = relu(sum_k a_k A_k)` with `a_k = mean_ij d y_c / d A_kij`: `A` the features at the tap, `y_c` the logit of the
    target class. Not negative; all zero where no channel speaks for the class. For a pooled linear head this is
    `relu(CAM) / (h w)`.

    Source: Selvaraju et al. 2017 (arXiv 1610.02391), equations 1 and 2.
    """

    def combine(self, feature: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        return einsum("bchw,bc->bhw", feature, gradient.mean((2, 3))).relu()
