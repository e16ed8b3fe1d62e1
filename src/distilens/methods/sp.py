"""Similarity-preserving distillation: match the similarities between images."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens import losses
from distilens.methods.relational import Relational


class SP(Relational):
    """Match the similarities between the images of a batch: similarity-preserving distillation.

    `sum_j (G_s - G_t)_ij^2 / b`, where `G` holds the products `f fᵀ` of the images' features, with rows of length 1. The mean
    over the batch is the paper's loss. The paper's weight is 3000. A batch of a single image gives 0.

    Args:
        tap: where the features are read; all places and channels count.
        teacher_tap: the teacher's tap, if its name differs.

    Source: Tung and Mori 2019 (arXiv 1907.09682), equation 4.
    """

    weight = 3000.0

    def compare(self, ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b d i j"]) -> Float[Tensor, " b"]:
        return losses.sp(ours, theirs, reduction="none")
