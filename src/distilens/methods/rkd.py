"""Relational knowledge distillation: match distances and angles between images."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.methods.relational import Relational

Factor = Annotated[float, Field(ge=0)]


class RKD(Relational):
    """Match distances between the images of a batch, and angles between three of them: relational distillation.

    `distance mean_j H(d_s_ij - d_t_ij) + angle mean_jk H(a_s_ijk - a_t_ijk)`, on pooled features: `d` are Euclidean distances
    divided by their mean, `a` is the cosine of the angle at image i, `H` is the Huber loss. The mean over the batch is the
    paper's loss.

    Args:
        distance: the factor of distances; RepDistiller uses 25.
        angle: the factor of angles; RepDistiller uses 50.
        tap: where the features are read.
        teacher_tap: the teacher's tap, if its name differs.

    Source: Park et al. 2019 (arXiv 1904.05068), equations 5 and 8.
    """

    def __init__(
        self, *, distance: Factor = 25.0, angle: Factor = 50.0, tap: str = "last", teacher_tap: str | None = None
    ):
        super().__init__(tap=tap, teacher_tap=teacher_tap)
        self.distance, self.angle = distance, angle

    def compare(self, ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b d i j"]) -> Float[Tensor, " b"]:
        return losses.rkd(ours, theirs, distance=self.distance, angle=self.angle, reduction="none")
