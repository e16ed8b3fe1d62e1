"""Attention at the levels of the teacher that are like the student's."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from distilens.core import Answer, Batch, Output
from distilens.explain.attention import attention
from distilens.explain.maps import on_one_grid
from distilens.losses.maps import distance
from distilens.methods.paired import LEVELS, Paired, Shape

Count = Annotated[int, Field(ge=1)]


class RTK(Paired):
    """Match attention maps with the teacher's most alike levels: representative teacher keys.

    `sum_s sum_t a_st mean_places (phi(F_s) - phi(F_t))^2`, `phi = m / |m|` with `m = mean_k A_k^2` as in `at`. The shares
    `a_st = softmax_t(q_s . k_t / sqrt(width))` are of the `keys` largest alone; the queries `q_s` and keys `k_t` are linear in
    the pooled features, trained along and thrown away. Every tap of the student sees all of the teacher's.

    Args:
        taps: the student's, and the teacher's too unless they are called otherwise.
        teacher_taps: the teacher's; as many.
        keys: how many of the teacher's levels each of the student's attends to.
        width: of queries and keys.

    Source: Lee et al. 2022 (arXiv 2206.12788), of which the abstract alone was at hand: the formula is that of attention-based
    feature distillation (Ji et al. 2021, arXiv 2102.02973, equations 3 to 6) with the keys cut to the most alike.
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
            return self.matched(ours, theirs)

    def matched(self, ours: list[Tensor], theirs: list[Tensor]) -> Float[Tensor, " b"]:
        """The distances of all levels, weighed."""
        apart = torch.stack([torch.stack([apart_of(own, their) for their in theirs], 1) for own in ours], 1)
        return (self.shares(ours, theirs) * apart).sum((1, 2))

    def shares(self, ours: list[Tensor], theirs: list[Tensor]) -> Float[Tensor, "b s t"]:
        """How much each level of the student attends to each of the teacher."""
        queries, keys = (
            torch.stack([layer(feature.mean((2, 3))) for layer, feature in zip(layers, features, strict=True)], 1)
            for layers, features in ((self.query, ours), (self.key, theirs))
        )
        fit = queries @ keys.transpose(1, 2) / self.width**0.5
        kept = fit.topk(min(self.keys, fit.shape[2]), dim=2)
        return torch.zeros_like(fit).scatter(2, kept.indices, kept.values.softmax(2))


def apart_of(ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b d i j"]) -> Float[Tensor, " b"]:
    """How far two levels' attention is apart, on the smaller grid."""
    return distance(*on_one_grid(attention(ours), attention(theirs)), "at")
