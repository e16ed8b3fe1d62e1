"""Learning from the teacher's answers."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

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
        scaled = standardised if self.standardise else Tensor.float
        student = functional.log_softmax(scaled(output.logits) / self.temperature, dim=1)
        teacher = functional.log_softmax(scaled(answer.logits) / self.temperature, dim=1)
        return self.temperature**2 * functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def standardised(logits: Float[Tensor, "b classes"]) -> Float[Tensor, "b classes"]:
    """Each image's logits with mean 0 and deviation 1 over the classes (dividing by `classes - 1`, as the code).

    A deviation below 0.01 counts as 0.01, where the code adds 1e-7 to it: a head that starts at 0 would be thrown far off.
    """
    logits = logits.float()
    return (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True).clamp_min(0.01)
