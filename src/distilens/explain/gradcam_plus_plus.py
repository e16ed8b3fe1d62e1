"""Grad-CAM++: Grad-CAM with gradients weighted by place, so that several objects of one class all count."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.explain.activation import ActivationMap


class GradCAMPlusPlus(ActivationMap):
    """Grad-CAM++: Grad-CAM with gradients weighted by place, so that several objects of the class all show.

    `M = relu(sum_k w_k A_k)`, `w_k = sum_ij a_kij relu(g_kij)`, `a = g² / (2 g² + S_k g³)`, `S_k = sum_ab A_kab`,
    `g = d y_c / d A`. Computed in the scale-free form `a g = g / (2 + S_k g)` where `g > 0`, which needs no epsilon.
    The paper explains `exp(y_c)`, which multiplies the map by that number; we leave this factor out. The map is not negative.

    In the paper the features come from a ReLU, so `S_k >= 0`. At other taps a negative `S_k` counts as 0, because the fraction
    has a pole there. pytorch-grad-cam 1.5.7 adds 1e-6 to the denominator, which dominates it if gradients are below 1e-3.
    torch-cam 0.5.0 drops the denominator and returns `sum relu(g)³` as weights. Neither gives the paper's map.

    Source: Chattopadhay et al. 2018 (arXiv 1710.11063), equations 10, 11 and 19.
    """

    def combine(self, feature: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        positive = gradient.relu()
        total = feature.sum((2, 3), keepdim=True).clamp_min(0)
        weights = (positive / (2 + total * positive)).sum((2, 3))
        return torch.einsum("bchw,bc->bhw", feature, weights).relu()
