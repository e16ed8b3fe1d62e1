"""FitNets: match the teacher's features through a 1×1 convolution."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from distilens import losses
from distilens.core import Answer, Batch, Output
from distilens.methods.paired import Paired, Shape


class FitNet(Paired):
    """Match the teacher's features through a 1×1 convolution: hints.

    `mean (r(F_s) - F_t)^2` over channels and places. `r` is a 1×1 convolution to the teacher's channels; it is trained with the
    student and then dropped. If the grids differ, the smaller one is used.

    Args:
        tap: where the features are read; the paper uses the middle, `last-1`.
        teacher_tap: the teacher's tap, if its name differs.

    Source: Romero et al. 2015 (arXiv 1412.6550), equation 3. The paper first trains the layers up to the hint alone, without
    padding, with half the sum instead of the mean. RepDistiller trains everything at once, with weight 100 and with batch norm
    and ReLU after `r`. The default weight was chosen with `kd` on validation images, with few training images.
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
