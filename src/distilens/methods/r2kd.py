"""R2KD: correlate with the answers of the teacher and of a pruned copy, by value and by rank."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Model, Output
from distilens.foundation.errors import UserError
from distilens.losses.correlations import check_correlated

Factor = Annotated[float, Field(ge=0)]
ENOUGH = 16
"""Check a pruned teacher only on batches of at least this many images: fewer may all be of one class."""


class R2KD(Method):
    """Correlate with the answers of the teacher and of a pruned copy of it, by value and by rank.

    `d(teacher) + pruned d(pruned teacher)`, with `d = (1 - r(p_s, p_t)) + rank (1 - r(R(z_s), R(z_t)))` per image: `r` is
    Pearson's correlation over classes, `p` the probabilities at a temperature, `R` the ranks. The student's ranks are softened,
    so that they have a derivative: `R_i = sum_j sigmoid((z_i - z_j) / (s deviation(z)))`. The loss ranges from 0 to
    `2 (1 + rank) (1 + pruned)`.

    Args:
        temperature: the temperature of the probabilities.
        rank: the factor of the ranks.
        softness: `s`; the ranks become hard as it goes to 0.
        pruned: the factor of the pruned copy's answers; 0 leaves the copy out.
        share: the share of the weights in convolutions and linear layers, the smallest, that the copy lacks.

    Raises:
        UserError: in `prepare`, if there are fewer than three classes, or if the pruned copy gives one class for all images.

    Source: based on the abstract only of Kim et al. 2024 (arXiv 2311.13934). The form is the usual one (as in CMKD,
    arXiv 2410.06561); the softened ranks and the factors are ours.
    """

    tasks = ("classification",)
    because = "it needs one answer per image, of a teacher and of its pruned copy"

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0)] = 4.0,
        rank: Factor = 1.0,
        softness: Annotated[float, Field(gt=0)] = 0.1,
        pruned: Factor = 1.0,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.3,
    ):
        super().__init__()
        self.temperature, self.rank, self.softness, self.pruned = temperature, rank, softness, pruned
        self.share = f"{share:g}"
        self.needs = ("logits", f"pruned:{self.share}") if pruned else ("logits",)

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        assert answer.logits is not None, "a teacher gives what is in `needs`"
        check_correlated(answer.logits)
        if self.pruned and len(batch) >= ENOUGH:
            pruned, whole = (len(logits.argmax(1).unique()) for logits in (answer.pruned[self.share], answer.logits))
            if pruned == 1 < whole:
                raise UserError(
                    f"the teacher without the smallest {100 * float(self.share):g} % of its weights gives one class for all "
                    f"{len(batch)} images of a batch; the teacher itself gives {whole}. Prune less (share=), or do not prune "
                    "(pruned=0)"
                )
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        assert answer.logits is not None, "a teacher gives what is in `needs`"
        apart = self.distance(output.logits, answer.logits)
        if self.pruned:
            apart = apart + self.pruned * self.distance(output.logits, answer.pruned[self.share])
        return apart

    def distance(self, ours: Float[Tensor, "b c"], theirs: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        """The distance `d` of the answers, by value and by rank."""
        options = {"temperature": self.temperature, "rank": self.rank, "softness": self.softness}
        return losses.r2kd(ours, theirs, **options, reduction="none")
