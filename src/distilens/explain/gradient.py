"""The input gradient: how the class's logit changes with each pixel."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.explain.activation import ActivationMap
from distilens.models.taps import INPUT

Channels = Literal["max", "sum", "norm"]


class Gradient(ActivationMap):
    """Input gradient (saliency): how much the class's logit changes with each pixel.

    `M = max_k |d y_c / d x_k|` over the colour channels. `channels=norm` takes the Euclidean norm, `channels=sum` the signed
    sum. `times_input` multiplies by the pixel first. The map is not negative, except with `sum`.

    The map has a derivative if the network has a second derivative. A network of ReLUs and linear layers is piecewise linear: a
    loss on its map trains through the weights only.

    Source: Simonyan et al. 2013 (arXiv 1312.6034), section 3.
    """

    def __init__(self, *, channels: Channels = "max", times_input: bool = False):
        super().__init__(tap=INPUT)
        self.channels: Channels = channels
        self.times_input = times_input
        self.signed = channels == "sum"

    def combine(self, feature: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        return over_channels(gradient * feature if self.times_input else gradient, self.channels)


def over_channels(gradient: Float[Tensor, "b c h w"], channels: Channels) -> Float[Tensor, "b h w"]:
    """The colour channels combined into one value per pixel."""
    if channels == "sum":
        return gradient.sum(1)
    return gradient.abs().amax(1) if channels == "max" else torch.linalg.vector_norm(gradient, dim=1)
