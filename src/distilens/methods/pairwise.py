"""Pair-wise distillation: match the similarities between the places of an image."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Output
from distilens.foundation.settings import Count
from distilens.methods.paired import Paired


class Pairwise(Paired):
    """Match the similarities between the places of an image: structured, pair-wise distillation.

    `mean_uv (A_s - A_t)_uv^2` per image, with `A_uv` the cosine of the features at the places u and v, after a maximum over
    squares of `pool` × `pool` places. The numbers of channels may differ, so nothing is trained beside the student. If the grids
    differ, the smaller one is used. All places count, void or not.

    It needs a table of places by places per image: name a coarse tap, or pool more.

    Args:
        tap: where the features are read.
        teacher_tap: the teacher's tap, if its name differs.
        pool: the side of the squares.

    Source: Liu et al. 2019 (SKDS, arXiv 1903.04197). The paper's code pools each map to 2×2 places and has the weight
    0.5; CIRKD's code pools squares of 2×2 places and has the weight 10, as here. Both take the mean over pairs. The paper adds
    `kd` at each place and an adversary, which needs an optimizer of its own and is not in this method.
    """

    weight = 10.0

    def __init__(self, *, tap: str = "last", teacher_tap: str | None = None, pool: Count = 2):
        super().__init__([tap], [teacher_tap or tap])
        self.pool = pool

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        ((ours, theirs),) = self.features(output, answer)
        return losses.pairwise(ours, theirs, pool=self.pool, reduction="none")
