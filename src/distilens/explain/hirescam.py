"""HiResCAM: features times gradients at each place, summed over channels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens.explain.activation import ActivationMap


class HiResCAM(ActivationMap):
    """HiResCAM: what each place adds to the logit, to first order; Grad-CAM without averaging the gradient over places.

    `M = relu(sum_k g_k A_k)`, `g = d y_c / d A`. The map is not negative. With one linear layer behind the tap, the values before
    the ReLU sum to the logit minus the bias. At a ViT block whose patches are only read by a layer norm (the second to last
    block), the map is 0 up to rounding: a normalised vector has no gradient along itself. Tap the norm instead.

    Source: Draelos and Carin 2020 (arXiv 2011.08891), section 3.
    """

    def combine(self, feature: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        return (gradient * feature).sum(1).relu()
