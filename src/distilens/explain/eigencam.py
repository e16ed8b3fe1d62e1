"""The strongest pattern in a feature map, whatever the class: no gradient at all."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.explain.activation import FeatureMap
from distilens.taps import LAST


class EigenCAM(FeatureMap):
    """The first principal component of the features over places: what stands out, not what speaks for a class.

    `M = relu(F v)`: `F` the features `[h w, channels]` less their mean over places, `v` its first right singular vector, with
    the sign for which strong features come out positive (the mathematics leaves it open). Not negative; the same for every
    class; no gradient is needed. Without `centre`, `F` is taken as it is: the paper's form, which shows where features are
    strong at all. pytorch-grad-cam centres, and leaves the sign to chance.

    Has a derivative where the largest singular value is single.

    Source: Muhammad and Yeasin 2020 (arXiv 2008.00299), section III.
    """

    def __init__(self, *, tap: str = LAST, centre: bool = True):
        super().__init__(tap=tap)
        self.centre = centre

    def read_off(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        # a product of features: float32 would keep half its digits
        places = feature.flatten(2).transpose(1, 2).double()
        finite = places.isfinite().all(2).all(1)[:, None]
        places = places.where(finite[..., None], 0)  # eigh stops at NaN: such a map is NaN, as the others' are
        moved = places - places.mean(1, keepdim=True) if self.centre else places
        # the smaller of the two products has the same eigenvectors, up to one multiplication
        if moved.shape[1] < moved.shape[2]:
            value, vector = torch.linalg.eigh(moved @ moved.mT)
            seen = vector[..., -1] * value[:, -1:].clamp_min(0).sqrt()
        else:
            seen = (moved @ torch.linalg.eigh(moved.mT @ moved).eigenvectors[..., -1:])[..., 0]
        sign = (seen * places.norm(dim=2)).sum(1, keepdim=True).sign()
        return (sign * seen).relu().where(finite, torch.nan).unflatten(1, tuple(feature.shape[2:])).to(feature.dtype)
