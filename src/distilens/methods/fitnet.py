"""Learning the teacher's features themselves, through a translation of channels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from distilens import losses
from distilens.core import Answer, Batch, Output
from distilens.methods.paired import Paired, Shape


class FitNet(Paired):
    """Match the teacher's features: hints.

    `mean (r(F_s) - F_t)^2` over channels and places, `r` a 1×1 convolution to the teacher's channels that is trained along and
    thrown away. Of two grids the smaller counts.

    Args:
        tap: where the features are read; the paper takes the middle, `last-1`.
        teacher_tap: the teacher's, where it is called otherwise.

    Source: Romero et al. 2015 (arXiv 1412.6550), equation 3, which trains up to the hint alone first, without padding, and with
    half the sum instead of the mean. RepDistiller trains both at once, with weight 100 and batch norm and ReLU behind `r`.
    The default weight is, beside `kd`, what validation chose here with few images.
    """

    weight = 30.0

    def __init__(self, *, tap: str = "last", teacher_tap: str | None = None):
        super().__init__([tap], [teacher_tap or tap])
        self.regressor: nn.Module = nn.Identity()

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        self.regressor = nn.Conv2d(ours[0][0], theirs[0][0], 1)

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        ((ours, theirs),) = self.features(output, answer)
        return losses.fitnet(self.regressor(ours), theirs, reduction="none")
