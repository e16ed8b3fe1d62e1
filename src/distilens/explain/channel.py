"""One channel of a feature map: a filter, or a template of a KD layer."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens.explain.activation import FeatureMap
from distilens.foundation.errors import UserError
from distilens.models.taps import LAST


class Channel(FeatureMap):
    """One channel of a feature map: where it is active, the same for every class, without gradients.

    `M = A_k`, signed. `channel:tap=kd_layer.scores,number=5` shows where the sixth template of a KD layer matches.

    Args:
        number: `k`, counted from 0.
    """

    signed = True

    def __init__(self, *, tap: str = LAST, number: Annotated[int, Field(ge=0)] = 0):
        super().__init__(tap=tap)
        self.number = number

    def read_off(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        if self.number >= feature.shape[1]:
            raise UserError(
                f"there is no channel {self.number} at the tap {self.tap!r}, which has {feature.shape[1]} channels"
            )
        return feature[:, self.number]
