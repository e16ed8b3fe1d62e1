"""Features times gradients, place by place: exact for the part of the logit that a linear head reads."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens.explain.activation import ActivationMap


class HiResCAM(ActivationMap):
    """What each place adds to the logit, to first order: Grad-CAM without averaging the gradient over places.

    `M = relu(sum_k g_k A_k)`, `g = d y_c / d A`. Not negative. With one linear layer behind the tap, the sum before the ReLU
    adds up to the logit less the bias. At a block of a ViT whose patches only a layer norm reads after that (the one before the
    last), it is 0 but for rounding: what is normalised has no gradient along itself. There, tap the norm.

    Source: Draelos and Carin 2020 (arXiv 2011.08891), section 3.
    """

    def combine(self, feature: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        return (gradient * feature).sum(1).relu()
