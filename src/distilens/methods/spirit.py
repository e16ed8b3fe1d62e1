"""Spirit distillation: the student's front learns the teacher's general features without labels, then labels follow."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from distilens import losses
from distilens.core import Answer, Batch, Model, Output
from distilens.foundation.errors import UserError
from distilens.methods.paired import Paired, Shape
from distilens.models import taps


class Spirit(Paired):
    """Two phases: first the student's front mimics the teacher's features, then the other methods train all of it.

    In the first share `until` of the steps the only loss is `mean (F_s - F_t)^2` over channels and places; it needs no labels, so
    unlabelled images teach as well (`few=16` in the data keeps all other images without their labels). Then this loss ends and
    the other terms begin (`ce`, `kd`, ...). There is no regressor: the student's front must give the teacher's channels and
    grid, as a `unet:front=grouped` gives those of the `unet` with the same width.

    With `copy` the student starts with the weights of the teacher's modules at these paths, such as the decoder and the head.
    This is ordinary transfer, so a control without the first phase (`until=0`) should start with the same copy.

    Args:
        tap: the end of the front; by default that of the encoder.
        teacher_tap: the teacher's tap, if its name differs.
        until: the share of the steps for the first phase, in [0, 1); 0 leaves it out.
        copy: paths of modules that exist in both networks with the same shapes.

    Raises:
        UserError: the features differ in channels or grid, or a module differs in its shapes.

    Source: Wu et al. 2021 (arXiv 2103.13733 and 2104.14696). Only the abstracts could be read: the formula is the one they imply.
    They fine-tune in a run of its own; here both phases share a schedule, so a comparison has the same number of steps.
    """

    def __init__(
        self,
        *,
        tap: str = "last",
        teacher_tap: str | None = None,
        until: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        copy: tuple[str, ...] = (),
    ):
        super().__init__([tap], [teacher_tap or tap])
        self.alone = until
        self.copy = tuple(copy)
        self.needs = (*self.needs, *(f"module:{path}" for path in self.copy))

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        for path in self.copy:
            copy_weights(path, student, answer.modules[path])
        return super().prepare(student, batch, answer)

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        if ours != theirs:
            raise UserError(
                f"spirit: the student has the features {list(ours[0])} at {self.taps[0]!r}, the teacher {list(theirs[0])} at "
                f"{self.teacher_taps[0]!r} (channels, height, width): they must be equal. Choose another tap, or use fitnet, "
                "which trains a translation"
            )

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        ((ours, theirs),) = self.features(output, answer)
        return losses.fitnet(ours, theirs, reduction="none")


@torch.no_grad()
def copy_weights(path: str, student: Model, theirs: nn.Module) -> None:
    """Copy the weights and statistics of a module of the teacher into the student's module at the same path.

    Raises:
        UserError: the student has no such module, or a weight has another name or shape.
    """
    ours = taps.find(student.network, path)
    mine, their = ours.state_dict(), theirs.state_dict()
    different = [
        name
        for name in {**mine, **their}
        if name not in mine or name not in their or mine[name].shape != their[name].shape
    ]
    if different:
        raise UserError(
            f"spirit: copy={path}: {len(different)} of the weights differ between teacher and student, such as "
            f"{path}.{different[0]}. Copy modules that are equal in both networks"
        )
    ours.load_state_dict(
        {name: value.detach().to(mine[name].device, mine[name].dtype) for name, value in their.items()}
    )
