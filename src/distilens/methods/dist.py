"""Learning the order of the teacher's answers, not their size: over classes, and over images."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Model, Output
from distilens.errors import UserError
from distilens.losses.correlations import CLASSES

Factor = Annotated[float, Field(ge=0)]


class DIST(Method):
    """Correlate with the teacher's probabilities: of the classes for each image, and of the images for each class.

    `T^2 (beta mean_i (1 - r(p_s[i, :], p_t[i, :])) + gamma mean_c (1 - r(p_s[:, c], p_t[:, c])))`, `r` Pearson's correlation,
    `p` at temperature `T`. A student may so be less or more sure than its teacher. The second part is of the batch: a single
    image has none. The first says nothing of two classes: two numbers are always correlated by 1 or -1.

    Args:
        temperature: `T`; the paper: 1 on ImageNet, 4 on CIFAR.
        beta: the factor within images; the paper: 1, and 2 on ImageNet.
        gamma: the factor within classes; the paper: 1, and 2 on ImageNet.

    Raises:
        UserError: in `prepare`, two classes or fewer, and `gamma=0`.

    Source: Huang et al. 2022 (arXiv 2205.10536), equations 6 to 9.
    """

    needs = ("logits",)

    def __init__(self, *, temperature: Annotated[float, Field(gt=0)] = 4.0, beta: Factor = 1.0, gamma: Factor = 1.0):
        super().__init__()
        self.temperature, self.beta, self.gamma = temperature, beta, gamma

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        if len(student.classes) < CLASSES and not self.gamma:
            raise UserError(
                f"dist correlates over classes alone where gamma=0, and {student.name} has {len(student.classes)}"
            )
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        assert answer.logits is not None, "a teacher gives what is in `needs`"
        options = {"temperature": self.temperature, "beta": self.beta, "gamma": self.gamma}
        return losses.dist(output.logits, answer.logits, **options, reduction="none")
