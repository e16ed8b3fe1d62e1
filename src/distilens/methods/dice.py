"""The Dice loss: the overlap of soft masks with the labels."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Output
from distilens.methods.labels import DENSE, of_labels


class Dice(Method):
    """Learn the labels by the overlap of masks: the Dice loss. It adds up with `ce`.

    `1 - mean_c (2 sum_u p_uc y_uc + s) / (sum_u p_uc + sum_u y_uc + s)` per image, in [0, 1], over the classes of the image's
    target; void places are left out. A small region counts as much as a large one. For mixed images the losses of both targets
    are weighted by their shares.

    Args:
        smooth: `s`. With 0 the loss does not depend on the size of the image; nothing is divided by 0, because classes that are
            absent from the target are left out.

    Source: Milletari, Navab and Ahmadi 2016 (V-Net, arXiv 1606.04797), section 3; without squares in the divisor, as in Sudre et
    al. 2017 (arXiv 1707.03237). Much code takes one ratio for the whole batch, and counts the absent classes as 0 or 1.
    """

    tasks = DENSE
    because = "it compares the masks of an image, and a class of a whole image is no mask"

    def __init__(self, *, smooth: Annotated[float, Field(ge=0)] = 0.0):
        super().__init__()
        self.smooth = smooth

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        return of_labels(
            batch, lambda targets: losses.dice(output.logits, targets, smooth=self.smooth, reduction="none")
        )
