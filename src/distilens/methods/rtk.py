"""Representative teacher keys: match attention maps with the teacher's most similar levels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distilens.core import Answer, Batch, Output
from distilens.explain.attention import attention
from distilens.foundation.settings import Count
from distilens.losses.maps import distance
from distilens.methods.paired import LEVELS, Paired, Shape
from distilens.models.grids import on_one_grid


class RTK(Paired):
    """Match attention maps with the teacher's most similar levels: representative teacher keys.

    `sum_s sum_t a_st mean_places (phi(F_s) - phi(F_t))^2`, `phi = m / |m|` with `m = mean_k A_k^2` as in `at`. The shares
    `a_st = softmax_t(q_s . k_t / sqrt(width))` use only the `keys` largest; the other levels get 0. The queries `q_s` and the
    keys `k_t` are linear layers on the pooled features; they are trained with the student and then dropped. Every tap of the
    student is compared with all taps of the teacher.

    Args:
        taps: the student's taps, and the teacher's if their names do not differ.
        teacher_taps: the teacher's taps; the same number.
        keys: how many levels of the teacher each level of the student attends to.
        width: the width of queries and keys.

    Source: based on the abstract only of Lee et al. 2022 (arXiv 2206.12788). The formula is that of attention-based feature
    distillation (Ji et al. 2021, arXiv 2102.02973, equations 3 to 6), restricted to the most similar keys.
    """

    weight = 1000.0

    def __init__(
        self, *, taps: tuple[str, ...] = LEVELS, teacher_taps: tuple[str, ...] = (), keys: Count = 2, width: Count = 64
    ):
        super().__init__(taps, teacher_taps)
        self.keys, self.width = keys, width
        self.query, self.key = nn.ModuleList(), nn.ModuleList()

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        self.query = nn.ModuleList(nn.Linear(channels, self.width) for channels, *_ in ours)
        self.key = nn.ModuleList(nn.Linear(channels, self.width) for channels, *_ in theirs)

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        ours, theirs = self.each(output, answer)
        with torch.autocast(output.logits.device.type, enabled=False):
            return self.compare_levels(ours, theirs)

    def compare_levels(self, ours: list[Tensor], theirs: list[Tensor]) -> Float[Tensor, " b"]:
        """The weighted sum of the distances of all levels."""
        distances = torch.stack([torch.stack([map_distance(own, their) for their in theirs], 1) for own in ours], 1)
        return (self.shares(ours, theirs) * distances).sum((1, 2))

    def shares(self, ours: list[Tensor], theirs: list[Tensor]) -> Float[Tensor, "b s t"]:
        """How much each level of the student attends to each level of the teacher."""
        queries, keys = (
            torch.stack([layer(feature.mean((2, 3))) for layer, feature in zip(layers, features, strict=True)], 1)
            for layers, features in ((self.query, ours), (self.key, theirs))
        )
        fit = queries @ keys.transpose(1, 2) / self.width**0.5
        nearest = fit.topk(min(self.keys, fit.shape[2]), dim=2)
        return torch.zeros_like(fit).scatter(2, nearest.indices, nearest.values.softmax(2))


def map_distance(ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b d i j"]) -> Float[Tensor, " b"]:
    """The distance between the attention maps of two levels, on the smaller grid."""
    return distance(*on_one_grid(attention(ours), attention(theirs)), "at")
