"""Intra-class feature variation distillation: match how similar each place is to the mean of its class."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Model, Output
from distilens.methods.labels import DENSE
from distilens.methods.paired import Paired
from distilens.tasks import VOID


class IFVD(Paired):
    """Match how similar each place is to the mean of its class in the image: intra-class feature variation distillation.

    `mean_u (v_s - v_t)_u^2` per image, with `v_u = cos(F_u, m_c)`: `c` is the class of place u by the labels, and `m_c` is the
    mean of the features at the image's places of that class. Void places are left out of both means; an image without labels
    gives 0. The class of a place is that of the pixel under its centre. The numbers of channels may differ. If the grids differ,
    the smaller one is used. Mixed images have the class of the first image.

    Args:
        tap: where the features are read.
        teacher_tap: the teacher's tap, if its name differs.

    Source: Wang et al. 2020 (IFVD, ECCV); its weight, 200, is the default. CIRKD's comparison uses 20. In the
    published code a void place is its own mean and counts as 0, so the loss shrinks with the share of void.
    """

    tasks = DENSE
    because = "it needs the class of each place"
    weight = 200.0

    def __init__(self, *, tap: str = "last", teacher_tap: str | None = None):
        super().__init__([tap], [teacher_tap or tap])
        self.classes = VOID

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        self.classes = student.task.outputs
        return super().prepare(student, batch, answer)

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        ((ours, theirs),) = self.features(output, answer)
        return losses.ifvd(ours, theirs, batch.targets, classes=self.classes, reduction="none")
