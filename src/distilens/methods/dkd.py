"""Learning from the teacher's answers, the right class and the others apart."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Output

Factor = Annotated[float, Field(ge=0)]


class DKD(Method):
    """Match how sure the teacher is of the class, and how it shares out the rest, each with a factor of its own.

    `T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s))`, `b = (p_c, 1 - p_c)` the probability of the class and of all others,
    `q` the probabilities of the others among themselves, at temperature `T`; per sample, in nats. `kd` is the same with
    `alpha = 1` and `beta = 1 - p_c` of the teacher, which nearly hides the second where the teacher is sure. The class is
    the label; where there is none, the teacher's first.

    Args:
        temperature: `T`.
        alpha: the factor of the target class.
        beta: the factor of the other classes.

    Source: Zhao et al. 2022 (arXiv 2203.08679), equation 7. Its beta is chosen by pair, from 2 (ResNet-56 to 20) to 8; its term
    grows over 20 of 240 epochs, which is the default `warmup` here.
    """

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
        return losses.dkd(output.logits, answer.logits, batch.labels, **options, reduction="none")
