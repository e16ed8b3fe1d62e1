"""Masked generative distillation: generate the teacher's features from a part of the student's."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from distilens import losses
from distilens.core import Answer, Batch, Output
from distilens.methods.paired import Paired, Shape


class MGD(Paired):
    """Generate the teacher's features from a part of the student's: masked generative distillation.

    `mean (G(M r(F_s)) - F_t)^2` over channels and places. `r` is a 1×1 convolution to the teacher's channels. `M` sets a share of
    the places to 0, all channels of a place together. `G` is a 3×3 convolution, ReLU and another 3×3 convolution. `r` and `G` are
    trained with the student and then dropped. If the grids differ, the smaller one is used.

    The mask depends only on (seed, epoch, image), not on the order of the images or on the batch.

    Args:
        share: the share of the places that are hidden; the paper: 0.75 for segmentation.
        tap: where the features are read.
        teacher_tap: the teacher's tap, if its name differs.

    Source: Yang et al. 2022 (MGD, arXiv 2205.01529). The published weight, 2e-5, is for the sum over channels
    and places; for 512 channels at 64×64 places it is 42 times the mean, the default here.
    """

    weight = 42.0

    def __init__(
        self,
        *,
        share: Annotated[float, Field(ge=0, lt=1)] = 0.75,
        tap: str = "last",
        teacher_tap: str | None = None,
    ):
        super().__init__([tap], [teacher_tap or tap])
        self.share = share
        self.regressor: nn.Module = nn.Identity()
        self.generator: nn.Module = nn.Identity()

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        channels = theirs[0][0]
        self.regressor = nn.Conv2d(ours[0][0], channels, 1)
        self.generator = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        ((ours, theirs),) = self.features(output, answer)
        shown = self.draw_shown(batch, ours)
        return losses.fitnet(self.generator(self.regressor(ours) * shown), theirs, reduction="none")

    def draw_shown(self, batch: Batch, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """1 at the places that the generator sees, 0 at the others."""
        height, width = feature.shape[-2:]
        draws = batch.draw("mgd", height * width).view(-1, 1, height, width)
        return (draws >= self.share).to(feature.dtype)
