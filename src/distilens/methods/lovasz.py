"""The Lovasz-softmax loss: the mean intersection over union, made differentiable."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Output
from distilens.methods.labels import DENSE, of_labels


class Lovasz(Method):
    """Learn the labels by the intersection over union: the Lovasz-softmax loss. It adds up with `ce`.

    `mean_c sum_k m_(k) (J_k - J_(k-1))` per image, in [0, 1], over the classes of the image's target; void places are left out.
    `m` are the errors `|y_uc - p_uc|` of a class, sorted from large to small, and `J_k` is 1 - IoU of a prediction that is wrong
    at the first `k` of them. For mixed images the losses of both targets are weighted by their shares.

    It sorts all places once per image and class, in float32.

    Source: Berman, Rannen Triki and Blaschko 2018 (arXiv 1705.08790), algorithm 1, per image and for the classes that are there.
    """

    tasks = DENSE
    because = "it compares the masks of an image, and a class of a whole image is no mask"

    def __init__(self) -> None:
        super().__init__()

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        return of_labels(batch, lambda targets: losses.lovasz(output.logits, targets, reduction="none"))
