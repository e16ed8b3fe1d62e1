"""DIST: correlate with the teacher's probabilities, over classes and over images."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Model, Output
from distilens.foundation.errors import UserError
from distilens.losses.correlations import CLASSES

Factor = Annotated[float, Field(ge=0)]


class DIST(Method):
    """Correlate with the teacher's probabilities: over the classes of each image, and over the images for each class.

    `T^2 (beta mean_i (1 - r(p_s[i, :], p_t[i, :])) + gamma mean_c (1 - r(p_s[:, c], p_t[:, c])))`, with `r` Pearson's
    correlation and `p` the probabilities at temperature `T`. So a student may be less or more sure than its teacher. The second
    part compares the images of the batch, so it needs more than one. The first part needs more than two classes: the
    correlation of two numbers is always 1 or -1.

    In a segmentation the rows `i` are the places of one image, on the student's grid, and the second part compares these places;
    the published code also mixes the images of a batch.

    Args:
        temperature: `T`; the paper: 1 on ImageNet, 4 on CIFAR.
        beta: the factor of the correlation within images; the paper: 1, and 2 on ImageNet.
        gamma: the factor of the correlation within classes; the paper: 1, and 2 on ImageNet.

    Raises:
        UserError: in `prepare`, if there are two classes or fewer and `gamma=0`.

    Source: Huang et al. 2022 (arXiv 2205.10536), equations 6 to 9.
    """

    tasks = ("classification", "segmentation")
    needs = ("logits",)

    def __init__(self, *, temperature: Annotated[float, Field(gt=0)] = 4.0, beta: Factor = 1.0, gamma: Factor = 1.0):
        super().__init__()
        self.temperature, self.beta, self.gamma = temperature, beta, gamma

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        if len(student.classes) < CLASSES and not self.gamma:
            raise UserError(
                f"dist with gamma=0 needs at least {CLASSES} classes; {student.name} has {len(student.classes)}"
            )
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        assert answer.logits is not None, "a teacher gives what is in `needs`"
        options = {"temperature": self.temperature, "beta": self.beta, "gamma": self.gamma}
        return losses.dist(output.logits, answer.logits, **options, reduction="none")
