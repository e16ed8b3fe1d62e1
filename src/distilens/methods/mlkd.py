"""Multi-level logit distillation: match answers at several temperatures, per image, between images and between classes."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Output

Factor = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]


class MLKD(Method):
    """Match answers on three levels, at several temperatures: multi-level logit distillation.

    The loss sums over the temperatures `T`, with `P [b c]` the probabilities at `T`:
    `instance T^2 KL(p_t || p_s) + images sum_j (P_s P_s^T - P_t P_t^T)_ij^2 + classes sum_cd (P_s^T P_s - P_t^T P_t)_cd^2 / c`.
    The first two parts are per image, the last is per batch.

    Args:
        temperatures: the values `T`; the default is that of the paper's code.
        instance: the factor of the answers per image.
        images: the factor of relations between images.
        classes: the factor of relations between classes.

    The default weight is 0.2, not 1: five temperatures add up, and weight 1 with `kd` reduced accuracy (docs/which.md).

    Source: Jin et al. 2023 (CVPR, "Multi-Level Logit Distillation"), equations 4 to 8. Its code also shows a second, strongly
    augmented picture and skips images on which the teacher is not sure; this version does neither. The published results come
    from twice the epochs.
    """

    tasks = ("classification",)
    because = "it compares the answers to whole images with each other"
    needs = ("logits",)
    weight = 0.2

    def __init__(
        self,
        *,
        temperatures: tuple[Temperature, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
        instance: Factor = 1.0,
        images: Factor = 1.0,
        classes: Factor = 1.0,
    ):
        super().__init__()
        self.temperatures, self.instance, self.images, self.classes = temperatures, instance, images, classes

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        assert answer.logits is not None, "a teacher gives what is in `needs`"
        factors = {"instance": self.instance, "images": self.images, "classes": self.classes}
        given = (output.logits, answer.logits)
        return losses.mlkd(*given, temperatures=self.temperatures, **factors, reduction="none")
