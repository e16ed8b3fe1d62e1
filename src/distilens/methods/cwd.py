"""Channel-wise distillation: match where each channel is strong."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from distilens import losses
from distilens.core import Answer, Batch, Model, Output
from distilens.methods.labels import DENSE
from distilens.methods.paired import Paired, Shape
from distilens.models.taps import LAST


class CWD(Paired):
    """Match where each channel is strong: channel-wise distillation, on dense logits or on features.

    `T^2 mean_c KL(p_t || p_s)` per image, in nats, with `p = softmax_u(z[c, u] / T)` over the places of a channel. So for each
    class, or channel, it matches the places and not the values. All places count, void or not. The teacher's logits are resized
    to the student's grid, bilinearly; features are compared on the smaller grid, after a 1×1 convolution of the student's to the
    teacher's channels. It is trained with the student and then dropped.

    The default weight is the paper's for logits, 3; for features the paper uses `weight=50`. The published code has the same
    scale: the sum over places, divided by the number of channels and images.

    Args:
        temperature: `T`.
        tap: a tap of features; by default the logits are compared.
        teacher_tap: the teacher's tap, if its name differs.

    Source: Shu et al. 2021 (arXiv 2011.13256). Its code takes the logarithm of a softmax, which is minus
    infinity on large maps; here the logarithms are computed directly.
    """

    weight = 3.0

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0)] = 4.0,
        tap: str | None = None,
        teacher_tap: str | None = None,
    ):
        super().__init__([tap or LAST], [teacher_tap or tap or LAST])
        self.temperature, self.of_features = temperature, tap is not None
        self.regressor: nn.Module = nn.Identity()
        if not self.of_features:
            self.needs = ("logits",)
            self.tasks = DENSE
            self.because = "it compares the places of each class, and the logits of a whole image have none. Name tap="

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        return super().prepare(student, batch, answer) if self.of_features else student

    def fit(self, ours: list[Shape], theirs: list[Shape]) -> None:
        self.regressor = nn.Conv2d(ours[0][0], theirs[0][0], 1)

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        if self.of_features:
            ((ours, theirs),) = self.features(output, answer)
            ours = self.regressor(ours)
        else:
            assert answer.logits is not None, "a teacher gives what is in `needs`"
            ours, theirs = output.logits, answer.logits
        return losses.cwd(ours, theirs, temperature=self.temperature, reduction="none")
