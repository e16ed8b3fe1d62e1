"""Learning the order of the teacher's answers, not their size: over classes, and over images."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens.core import Answer, Batch, Method, Model, Output
from distilens.errors import UserError

Factor = Annotated[float, Field(ge=0)]
CLASSES = 3
"""Over fewer Pearson's correlation is 1 or -1 whatever the numbers."""
FLAT = 0.03
"""Numbers whose deviation is a smaller share of their mean are all but alike."""


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
        ours, theirs = ((logits.float() / self.temperature).softmax(1) for logits in (output.logits, answer.logits))
        inter = 1 - pearson(ours, theirs)
        intra = (1 - pearson(ours.T, theirs.T)).mean() if len(ours) > 1 else 0.0
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)


def pearson(x: Float[Tensor, "b c"], y: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """Of each row of positive numbers; towards 0 where one varies by less than 3 % of its mean, 0 where it is constant.

    The published code divides by what is left, plus 1e-8: a student whose head starts at 0, as those of many transformers do,
    then gets a gradient of millions in its first step.
    """
    return (deviations(x) * deviations(y)).sum(1)


def deviations(x: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """Of each row from its mean, over their length."""
    mean = x.mean(1, keepdim=True)
    apart = x - mean
    return apart / apart.norm(dim=1, keepdim=True).clamp_min(1e-8).maximum(FLAT * mean.detach() * x.shape[1] ** 0.5)
