"""A network's features of a batch as rows, for methods that compare images with each other."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens.core import Answer, Batch, Method, Model, Output
from distilens.explain.activation import full, tapped
from distilens.taps import grid


class Relational(Method):
    """Matches relations between the images of a batch, which have no width: student's and teacher's may differ in everything.

    Args:
        tap: where the features are read.
        teacher_tap: the teacher's, where it is called otherwise.
    """

    pooled = True

    def __init__(self, *, tap: str = "last", teacher_tap: str | None = None):
        super().__init__()
        self.tap, self.teacher_tap = tap, teacher_tap or tap
        self.needs = (f"features:{self.teacher_tap}",)

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        student.tap(self.tap)
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        """Of each image: how far its relations to the others of the batch are from the teacher's."""
        ours, theirs = tapped(output, self.tap), answer.features[self.teacher_tap]
        return self.apart(*(rows(feature, output.size, pooled=self.pooled) for feature in (ours, theirs)))

    def apart(self, ours: Float[Tensor, "b d"], theirs: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        raise NotImplementedError


def rows(feature: Tensor, size: tuple[int, int], *, pooled: bool) -> Float[Tensor, "b d"]:
    """A row an image: the channels' means, or all values; in float32."""
    found = full(grid(feature, size))
    return found.flatten(2).mean(2) if pooled else found.flatten(1)
