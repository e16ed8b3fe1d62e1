"""Decoupled knowledge distillation: the target class and the other classes have separate factors."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Output

Factor = Annotated[float, Field(ge=0)]


class DKD(Method):
    """Match the teacher's probability of the class, and those of the other classes, with separate factors.

    `T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s))` at temperature `T`, per sample, in nats. `b = (p_c, 1 - p_c)` holds the
    probability of the class and of all others; `q` is the distribution over the other classes alone. `kd` is the same with
    `alpha = 1` and `beta = 1 - p_c` of the teacher, so its second part nearly vanishes if the teacher is sure. The class is
    the label; for an image without a label it is the teacher's top class. In a segmentation it is the mean over the places of
    the student's grid; void places have no label.

    Args:
        temperature: `T`.
        alpha: the factor of the target class.
        beta: the factor of the other classes.

    Source: Zhao et al. 2022 (arXiv 2203.08679), equation 7. The paper chooses beta per model pair, from 2 (ResNet-56 to 20) to 8.
    Its term grows over 20 of 240 epochs; this is the default `warmup` here.
    """

    tasks = ("classification", "segmentation")
    needs = ("logits",)
    warmup = 0.08

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0)] = 4.0,
        alpha: Factor = 1.0,
        beta: Factor = 2.0,
    ):
        super().__init__()
        self.temperature, self.alpha, self.beta = temperature, alpha, beta

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        assert answer.logits is not None, "a teacher gives what is in `needs`"
        options = {"temperature": self.temperature, "alpha": self.alpha, "beta": self.beta}
        return losses.dkd(output.logits, answer.logits, batch.targets, **options, reduction="none")
