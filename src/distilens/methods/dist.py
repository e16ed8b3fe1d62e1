"""Learning the order of the teacher's answers, not their size: over classes, and over images."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from distilens.core import Answer, Batch, Method, Output

Factor = Annotated[float, Field(ge=0)]


class DIST(Method):
    """Correlate with the teacher's probabilities: of the classes for each image, and of the images for each class.

    `T^2 (beta mean_i (1 - r(p_s[i, :], p_t[i, :])) + gamma mean_c (1 - r(p_s[:, c], p_t[:, c])))`, `r` Pearson's correlation,
    `p` at temperature `T`. A student may so be less or more sure than its teacher. The second part is of the batch: a single
    image has none.

    Args:
        temperature: `T`; the paper: 1 on ImageNet, 4 on CIFAR.
        beta, gamma: the factors; the paper: 1, and 2 on ImageNet.

    Source: Huang et al. 2022 (arXiv 2205.10536), equations 6 to 9.
    """

    needs = ("logits",)

    def __init__(self, *, temperature: Annotated[float, Field(gt=0)] = 4.0, beta: Factor = 1.0, gamma: Factor = 1.0):
        super().__init__()
        self.temperature, self.beta, self.gamma = temperature, beta, gamma

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        assert answer.logits is not None, "a teacher gives what is in `needs`"
        ours, theirs = ((logits.float() / self.temperature).softmax(1) for logits in (output.logits, answer.logits))
        inter = 1 - pearson(ours, theirs)
        intra = (1 - pearson(ours.T, theirs.T)).mean() if len(ours) > 1 else 0.0
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)


def pearson(x: Float[Tensor, "b c"], y: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """Of each row; 0 where one is constant."""
    return cosine_similarity(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True), dim=1)
