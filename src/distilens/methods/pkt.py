"""Whom an image would choose as a neighbour, as the teacher says."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

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

    def apart(self, ours: Float[Tensor, "b d"], theirs: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        ours, theirs = (neighbours(features) for features in (ours, theirs))
        return (theirs * ((theirs + 1e-7) / (ours + 1e-7)).log()).mean(1)


def neighbours(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    directions = normalize(features, dim=1, eps=1e-7)
    kernel = (directions @ directions.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)
