"""The base class of methods that compare features of student and teacher, tap by tap."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from jaxtyping import Float
from torch import Tensor

from distilens.core import Answer, Batch, Method, Model, Output
from distilens.explain.activation import full, tapped
from distilens.foundation.errors import UserError
from distilens.models.grids import on_one_grid
from distilens.models.taps import LAST, grid

Shape = tuple[int, int, int]
"""The shape of a feature of one image: channels, height, width."""
LEVELS = (f"{LAST}-2", f"{LAST}-1", LAST)
"""The last features of the three coarsest grids, from fine to coarse."""


class Paired(Method):
    """Compares each tap of the student with one tap of the teacher. A subclass may override `fit`.

    Args:
        taps: where the student's features are read.
        teacher_taps: the teacher's taps, if their names differ.

    Raises:
        UserError: the numbers of taps differ; in `prepare`, if a feature is not a grid.
    """

    def __init__(self, taps: Sequence[str], teacher_taps: Sequence[str] = ()):
        super().__init__()
        self.taps, self.teacher_taps = tuple(taps), tuple(teacher_taps or taps)
        if len(self.taps) != len(self.teacher_taps) or not self.taps:
            raise UserError(
                f"{type(self).__name__.lower()} needs one tap of the teacher per tap of the student, at least one; given "
                f"{len(self.teacher_taps)} and {len(self.taps)}"
            )
        self.needs = tuple(dict.fromkeys(f"features:{tap}" for tap in self.teacher_taps))

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        for tap in self.taps:
            student.tap(tap)
        theirs = [shape_of(grid(answer.features[tap], student.size)) for tap in self.teacher_taps]
        self.fit(shapes(student, self.taps), theirs)
        return student

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        """Size the method's modules by the shapes of the features at each tap."""

    def each(self, output: Output, answer: Answer) -> tuple[list[Tensor], list[Tensor]]:
        """The student's features and the teacher's, by tap, `[b c h w]` in float32."""
        ours = [full(grid(tapped(output, tap), output.size)) for tap in self.taps]
        return ours, [full(grid(answer.features[tap], output.size)) for tap in self.teacher_taps]

    def features(self, output: Output, answer: Answer) -> list[tuple[Tensor, Tensor]]:
        """Both features at each tap, on the smaller of their grids."""
        return [on_one_grid(own, their) for own, their in zip(*self.each(output, answer), strict=True)]


def shapes(student: Model, taps: Sequence[str]) -> list[Shape]:
    """The shapes of the student's features at some taps, from a forward pass."""
    with ExitStack() as stack:
        reading = [stack.enter_context(student.reading(tap)) for tap in taps]
        student.probe()
        return [shape_of(grid(tap.take(), student.size)) for tap in reading]


def shape_of(feature: Float[Tensor, "b c h w"]) -> Shape:
    channels, height, width = feature.shape[1:]
    return channels, height, width
