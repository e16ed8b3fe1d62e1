"""What methods share that compare the images of a batch with each other."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens.core import Answer, Batch, Output
from distilens.explain.activation import full, tapped
from distilens.methods.paired import Paired
from distilens.taps import grid


class Relational(Paired):
    """Matches relations between the images of a batch, which have no width: student's and teacher's may differ in everything.

    Args:
        tap: where the features are read.
        teacher_tap: the teacher's, where it is called otherwise.
    """

    def __init__(self, *, tap: str = "last", teacher_tap: str | None = None):
        super().__init__([tap], [teacher_tap or tap])

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        """Of each image: how far its relations to the others of the batch are from the teacher's."""
        both = tapped(output, self.taps[0]), answer.features[self.teacher_taps[0]]
        return self.apart(*(full(grid(feature, output.size)) for feature in both))

    def apart(self, ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b d i j"]) -> Float[Tensor, " b"]:
        """The loss of the student's features and the teacher's."""
        raise NotImplementedError
