"""Variational information distillation: predict the teacher's features from the student's."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from distilens.core import Answer, Batch, Output
from distilens.methods.paired import Paired, Shape

FIRST = 5.0
"""The initial variance, from the published code."""
SMALLEST = 1e-5


class VID(Paired):
    """Predict the teacher's features from the student's: variational information distillation.

    The loss is `mean (F_t - mu(F_s))^2 / (2 v_c) + log(v_c) / 2` over channels and places, summed over taps. It is the negative
    log-likelihood of the teacher's feature under a normal distribution around the prediction `mu`. The variance per channel is
    `v_c = softplus(a_c) + 1e-5`; it starts at 5. `mu` (three 1×1 convolutions) and `a` are trained with the student and then
    dropped. The loss can be negative: a good prediction has a small variance. If the grids differ, the smaller one is used.

    Args:
        taps: where the features are read; the published code uses the ends of all stages.
        teacher_taps: the teacher's taps, if their names differ.

    Source: Ahn et al. 2019 (arXiv 1904.05835), equations 4 to 6. RepDistiller uses weight 1 and reads all stages.
    """

    weight = 10.0
    negative = True

    def __init__(self, *, taps: tuple[str, ...] = ("last",), teacher_taps: tuple[str, ...] = ()):
        super().__init__(taps, teacher_taps)
        self.predictors = nn.ModuleList()
        self.variances = nn.ParameterList()

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        sizes = [(channels, target) for (channels, *_), (target, *_) in zip(ours, theirs, strict=True)]
        start = math.log(math.expm1(FIRST - SMALLEST))
        self.predictors = nn.ModuleList(convolutions(channels, target, target, target) for channels, target in sizes)
        self.variances = nn.ParameterList(torch.full((target,), start) for _, target in sizes)

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        losses = []
        for (ours, theirs), predict, raw in zip(
            self.features(output, answer), self.predictors, self.variances, strict=True
        ):
            variance = (softplus(cast(Tensor, raw).float()) + SMALLEST).view(1, -1, 1, 1)
            error = (predict(ours).float() - theirs).square()
            losses.append((error / variance + variance.log()).flatten(1).mean(1) / 2)
        return torch.stack(losses).sum(0)


def convolutions(*channels: int) -> nn.Sequential:
    """1×1 convolutions with ReLUs between them."""
    layers = [layer for pair in pairwise(channels) for layer in (nn.Conv2d(*pair, 1), nn.ReLU())]
    return nn.Sequential(*layers[:-1])
