"""Learning from the teacher's answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Output


class KD(Method):
    """Match the teacher's softened class probabilities.

    `T^2 * sum_c p_t log(p_t / p_s)` with `p = softmax(z / T)`, per sample, in nats; 0 where both agree. The factor `T^2`
    keeps the gradient's size when T changes. In float32, whatever the precision of the step.

    Args:
        temperature: `T`.
        standardise: match the logits less their mean, divided by their deviation over the classes: the student need not
            have the teacher's range of logits. The papers' recipe: `weight=9,temperature=2` beside `ce:weight=0.1`.
        top: take the teacher's largest logits alone, and give the others together the mass that they had at temperature 1: an
            approximation, for many classes, whose stored answers take little room.

    Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2. RepDistiller and torchdistill divide by the batch
    size, as here; KD_Lib's default, a mean squared error of probabilities, is something else. For `standardise`: Sun et al.
    2024 (arXiv 2403.01427), algorithm 1.
    """

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
