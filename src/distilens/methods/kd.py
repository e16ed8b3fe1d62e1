"""Knowledge distillation: match the teacher's softened probabilities."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Output


class KD(Method):
    """Match the teacher's softened class probabilities.

    `T^2 * sum_c p_t log(p_t / p_s)` with `p = softmax(z / T)`, per sample, in nats; 0 if both agree. The factor `T^2`
    keeps the gradient's size when T changes. It is computed in float32, whatever the precision of the step. In a segmentation
    it is the mean over the places of the student's grid, void or not; the teacher's logits are resized to it, bilinearly.

    Args:
        temperature: `T`.
        standardise: first subtract the mean of the logits and divide by their standard deviation over the classes. The student
            then does not need the teacher's range of logits. The paper uses `weight=9,temperature=2` with `ce:weight=0.1`.
        top: use only the teacher's largest logits. The others share equally the total mass that they had at temperature 1. This
            is an approximation for many classes; the stored answers are small.

    Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2. RepDistiller and torchdistill divide by the batch
    size, as here. KD_Lib's default is a different loss: the mean squared error of probabilities. For `standardise`: Sun et al.
    2024 (arXiv 2403.01427), algorithm 1.
    """

    tasks = ("classification", "segmentation")

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0)] = 4.0,
        standardise: bool = False,
        top: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.temperature, self.standardise = temperature, standardise
        self.needs = ("logits" if top is None else f"logits:top={top}",)

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Tensor:
        assert answer.logits is not None, "a teacher gives what is in `needs`"
        options = {"temperature": self.temperature, "standardise": self.standardise}
        return losses.kd(output.logits, answer.logits, **options, reduction="none")
