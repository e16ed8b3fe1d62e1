"""Eigen-CAM: the first principal component of a feature map, the same for every class, without gradients."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.explain.activation import FeatureMap
from distilens.models.taps import LAST


class EigenCAM(FeatureMap):
    """Eigen-CAM: the first principal component of the features over places, the same for every class.

    `M = relu(F v)`: `F` are the features `[h w, channels]` minus their mean over places, `v` is its first right singular vector.
    Its sign is not determined; we take the sign for which strong features are positive. The map is not negative and needs no
    gradient. `centre=false` does not subtract the mean: this is the paper's form, which shows where features are strong.
    pytorch-grad-cam subtracts the mean and leaves the sign to chance.

    The map has a derivative if the largest singular value is unique.

    Source: Muhammad and Yeasin 2020 (arXiv 2008.00299), section III.
    """

    def __init__(self, *, tap: str = LAST, centre: bool = True):
        super().__init__(tap=tap)
        self.centre = centre

    def read_off(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        # products of features: float32 would lose half the digits
        places = feature.flatten(2).transpose(1, 2).double()
        finite = places.isfinite().all(2).all(1)[:, None]
        places = places.where(finite[..., None], 0)  # eigh fails on NaN: such a map is set to NaN below
        moved = places - places.mean(1, keepdim=True) if self.centre else places
        # the smaller of the two products has the same eigenvectors, up to one multiplication
        if moved.shape[1] < moved.shape[2]:
            value, vector = torch.linalg.eigh(moved @ moved.mT)
            seen = vector[..., -1] * value[:, -1:].clamp_min(0).sqrt()
        else:
            seen = (moved @ torch.linalg.eigh(moved.mT @ moved).eigenvectors[..., -1:])[..., 0]
        sign = (seen * places.norm(dim=2)).sum(1, keepdim=True).sign()
        return (sign * seen).relu().where(finite, torch.nan).unflatten(1, tuple(feature.shape[2:])).to(feature.dtype)
