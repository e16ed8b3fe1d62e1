"""Knowing what the teacher's features are, as well as can be told from the student's."""

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
"""The variance at the beginning, of the published code."""
SMALLEST = 1e-5


class VID(Paired):
    """Tell the teacher's features from the student's: variational information distillation.

    The sum over taps of `mean (F_t - mu(F_s))^2 / (2 v_c) + log(v_c) / 2` over channels and places: how unlikely the teacher's
    feature is under a normal distribution around a prediction `mu`, with a variance `v_c` a channel, `softplus(a_c) + 1e-5`
    from 5. `mu` (three 1×1 convolutions) and `a` are trained along and thrown away. It can be negative: where the prediction is
    good, the variance is small. Of two grids the smaller counts.

    Args:
        taps: where the features are read; the published code: the ends of all stages.
        teacher_taps: the teacher's, where they are called otherwise.

    Source: Ahn et al. 2019 (arXiv 1904.05835), equations 4 to 6; weight 1 in RepDistiller, which reads all stages.
    """

    weight = 10.0
    negative = True

    def __init__(self, *, taps: tuple[str, ...] = ("last",), teacher_taps: tuple[str, ...] = ()):
        super().__init__(taps, teacher_taps)
        self.predictors = nn.ModuleList()
        self.variances = nn.ParameterList()

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        sizes = [(channels, wanted) for (channels, *_), (wanted, *_) in zip(ours, theirs, strict=True)]
        start = math.log(math.expm1(FIRST - SMALLEST))
        self.predictors = nn.ModuleList(convolutions(channels, wanted, wanted, wanted) for channels, wanted in sizes)
        self.variances = nn.ParameterList(torch.full((wanted,), start) for _, wanted in sizes)

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        losses = []
        for (ours, theirs), predict, raw in zip(
            self.features(output, answer), self.predictors, self.variances, strict=True
        ):
            variance = (softplus(cast(Tensor, raw).float()) + SMALLEST).view(1, -1, 1, 1)
            missed = (predict(ours).float() - theirs).square()
            losses.append((missed / variance + variance.log()).flatten(1).mean(1) / 2)
        return torch.stack(losses).sum(0)


def convolutions(*channels: int) -> nn.Sequential:
    """1×1 convolutions with ReLUs between them."""
    layers = [layer for pair in pairwise(channels) for layer in (nn.Conv2d(*pair, 1), nn.ReLU())]
    return nn.Sequential(*layers[:-1])
