"""Images that are alike to the teacher are alike to the student."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens import losses
from distilens.methods.relational import Relational


class SP(Relational):
    """Match the similarities between the images of a batch: similarity-preserving distillation.

    `sum_j (G_s - G_t)_ij^2 / b`, `G` the products `f fᵀ` of the images' features with rows of length 1; the mean over the batch
    is the paper's. Its weight is 3000. Not of single images: 0 there.

    Args:
        tap: where the features are read; all places and channels count.
        teacher_tap: the teacher's, where it is called otherwise.

    Source: Tung and Mori 2019 (arXiv 1907.09682), equation 4.
    """

    weight = 3000.0

    def apart(self, ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b d i j"]) -> Float[Tensor, " b"]:
        return losses.sp(ours, theirs, reduction="none")
