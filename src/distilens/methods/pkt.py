"""Probabilistic knowledge transfer: match the neighbour distributions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens import losses
from distilens.methods.relational import Relational


class PKT(Relational):
    """Match each image's distribution over its neighbours in the batch: probabilistic knowledge transfer.

    `mean_j p_t_ij log(p_t_ij / p_s_ij)` on pooled features, `p_ij = k_ij / sum_j k_ij` with the cosine kernel
    `k = (cos(f_i, f_j) + 1) / 2`. The mean over the batch is the loss of the published code, for which RepDistiller uses the
    weight 30,000. The default here is 10,000: it was as good where 30,000 helped, and it did less harm with a ViT as teacher
    (docs/which.md).

    Args:
        tap: where the features are read.
        teacher_tap: the teacher's tap, if its name differs.

    Source: Passalis and Tefas 2018 (arXiv 1803.10837), equations 3 and 7. The code takes the mean over pairs, the paper the sum.
    """

    weight = 10000.0

    def compare(self, ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b d i j"]) -> Float[Tensor, " b"]:
        return losses.pkt(ours, theirs, reduction="none")
