"""The base class of methods that compare the images of a batch with each other."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens.core import Answer, Batch, Output
from distilens.explain.activation import full, tapped
from distilens.methods.paired import Paired
from distilens.models.taps import grid


class Relational(Paired):
    """Matches relations between the images of a batch. The features of student and teacher may have different shapes.

    Args:
        tap: where the features are read.
        teacher_tap: the teacher's tap, if its name differs.
    """

    def __init__(self, *, tap: str = "last", teacher_tap: str | None = None):
        super().__init__([tap], [teacher_tap or tap])

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        """The distance of each image's relations to the others of the batch from the teacher's."""
        both = tapped(output, self.taps[0]), answer.features[self.teacher_taps[0]]
        return self.compare(*(full(grid(feature, output.size)) for feature in both))

    def compare(self, ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b d i j"]) -> Float[Tensor, " b"]:
        """The loss between the features of student and teacher."""
        raise NotImplementedError
