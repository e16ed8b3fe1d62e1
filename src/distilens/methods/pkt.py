"""Whom an image would choose as a neighbour, as the teacher says."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens import losses
from distilens.methods.relational import Relational


class PKT(Relational):
    """Match each image's probabilities of neighbours in the batch: probabilistic knowledge transfer.

    `mean_j p_t_ij log(p_t_ij / p_s_ij)`, `p_ij = k_ij / sum_j k_ij` with the cosine kernel `k = (cos(f_i, f_j) + 1) / 2`; of
    pooled features. The mean over the batch is the published code's, and RepDistiller's weight of 30,000 is for it; the default
    is 10,000, which was no worse where that gained and did less harm under a ViT (docs/which.md).

    Args:
        tap: where the features are read.
        teacher_tap: the teacher's, where it is called otherwise.

    Source: Passalis and Tefas 2018 (arXiv 1803.10837), equations 3 and 7; the code takes the mean over pairs, the paper the sum.
    """

    weight = 10000.0

    def apart(self, ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b d i j"]) -> Float[Tensor, " b"]:
        return losses.pkt(ours, theirs, reduction="none")
