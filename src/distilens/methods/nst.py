"""Neuron selectivity transfer: match where the channels are active."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Output
from distilens.methods.paired import Paired


class NST(Paired):
    """Match the distributions of the places where channels are active: neuron selectivity transfer.

    The loss is the squared maximum mean discrepancy between the channel maps `f_k = A_k / |A_k|` of student and teacher, with
    the kernel `k(x, y) = (x . y)^2`, summed over taps:
    `mean_kl k(s_k, s_l) + mean_kl k(t_k, t_l) - 2 mean_kl k(s_k, t_l) = |S / c_s - T / c_t|^2`, where `S` and `T` are the tables
    `sum_k f_k f_k^T` over places. So the numbers of channels may differ. If the grids differ, the smaller one is used.

    Args:
        taps: where the features are read; the published code uses the ends of all stages.
        teacher_taps: the teacher's taps, if their names differ.

    It needs a table of places by places per image, so use coarse taps.

    Source: Huang and Wang 2017 (arXiv 1707.01219), equation 9, with the polynomial kernel of section 4.2, d = 2, c = 0; weight 50
    in RepDistiller.
    """

    weight = 50.0

    def __init__(self, *, taps: tuple[str, ...] = ("last",), teacher_taps: tuple[str, ...] = ()):
        super().__init__(taps, teacher_taps)

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        pairs = self.features(output, answer)
        return torch.stack([losses.nst(ours, theirs, reduction="none") for ours, theirs in pairs]).sum(0)
