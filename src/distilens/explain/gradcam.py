"""Grad-CAM: the features at a tap, their channels weighted by the mean gradient of the class's logit."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, einsum

from distilens.explain.activation import ActivationMap


class GradCAM(ActivationMap):
    """Grad-CAM: where the features for a class are, with channel weights from gradients, at a tap's resolution.

    `M = relu(sum_k a_k A_k)` with `a_k = mean_ij d y_c / d A_kij`: `A` are the features at the tap, `y_c` is the logit of the
    target class. The map is not negative; it is zero everywhere if no channel supports the class. For a pooled linear head it is
    `relu(CAM) / (h w)`.

    Source: Selvaraju et al. 2017 (arXiv 1610.02391), equations 1 and 2.
    """

    def combine(self, feature: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        return einsum("bchw,bc->bhw", feature, gradient.mean((2, 3))).relu()
