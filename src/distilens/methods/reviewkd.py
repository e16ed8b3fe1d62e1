"""Knowledge review: match each level of the teacher with that level of the student and all deeper ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from distilens import losses
from distilens.core import Answer, Batch, Output
from distilens.methods.paired import LEVELS, Paired, Shape


class ReviewKD(Paired):
    """Match the teacher's features at several levels, fused with the student's deeper levels: knowledge review.

    The fusion goes from the deepest level up. Each feature of the student is brought to a common width, fused with the next
    deeper level (with attention shares from a 1×1 convolution and a sigmoid), and brought to the teacher's channels. These
    layers are trained with the student and then dropped. The distance of a level is hierarchical:
    `sum_l w_l mean (P_l(F) - P_l(F_t))^2 / sum_l w_l`, with `P_l` the feature itself and its averages over 4×4, 2×2 and 1×1
    cells, `w_l = 1, 1/2, 1/4, 1/8`. The loss is the sum over levels.

    Args:
        taps: from fine to coarse; by default the last features of the three coarsest grids.
        teacher_taps: the teacher's taps, if their names differ.
        width: channels of the fused features; by default the largest number of channels of the student's features, at most 512.

    Source: Chen et al. 2021 (arXiv 2104.09044), figure 3 and section 3.3. mdistiller uses weight 5 and 20 of 240 epochs of
    warm-up. The published code compares the pooled feature as a separate level; here the 1×1 cells of the deepest level do so.
    """

    warmup = 0.08
    weight = 20.0

    def __init__(self, *, taps: tuple[str, ...] = LEVELS, teacher_taps: tuple[str, ...] = (), width: int | None = None):
        super().__init__(taps, teacher_taps)
        self.width = width
        self.fusions = nn.ModuleList()

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        width = self.width or min(512, max(channels for channels, *_ in ours))
        sizes = [(channels, target) for (channels, *_), (target, *_) in zip(ours, theirs, strict=True)]
        deepest = len(ours) - 1
        self.fusions = nn.ModuleList(
            Fusion(channels, width, target, fused=level < deepest) for level, (channels, target) in enumerate(sizes)
        )

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        deeper, distances = None, []
        for (ours, theirs), fusion in reversed(list(zip(self.features(output, answer), self.fusions, strict=True))):
            made, deeper = fusion(ours, deeper)
            distances.append(losses.hierarchical(made, theirs, reduction="none"))
        return torch.stack(distances).sum(0)


class Fusion(nn.Module):
    """Attention-based fusion of a student's feature with the next deeper level."""

    def __init__(self, channels: int, width: int, target: int, *, fused: bool):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.leave = nn.Sequential(nn.Conv2d(width, target, 3, padding=1, bias=False), nn.BatchNorm2d(target))
        self.attend = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fused else None

    def forward(self, feature: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The feature in the teacher's channels, and the fused feature for the next level."""
        own = self.enter(feature)
        if self.attend is not None and deeper is not None:
            deeper = functional.interpolate(deeper, own.shape[-2:], mode="nearest")
            shares = self.attend(torch.cat([own, deeper], 1))
            own = own * shares[:, :1] + deeper * shares[:, 1:]
        return self.leave(own), own
