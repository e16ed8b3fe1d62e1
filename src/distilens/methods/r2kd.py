"""Learning the order of the teacher's answers too, and from a pruned copy of the teacher, for hard pictures."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens import losses
from distilens.core import Answer, Batch, Method, Model, Output
from distilens.errors import UserError
from distilens.losses.correlations import check_correlated

Factor = Annotated[float, Field(ge=0)]
ENOUGH = 16
"""Images on which a pruned teacher is judged: of fewer all may be of one class."""


class R2KD(Method):
    """Correlate with the teacher's answers, by value and by rank, and with those of a pruned copy of it.

    `d(teacher) + pruned d(pruned teacher)`, `d = (1 - r(p_s, p_t)) + rank (1 - r(R(z_s), R(z_t)))` per image: `r` Pearson's
    correlation over classes, `p` probabilities at a temperature, `R` ranks, of the student softened:
    `R_i = sum_j sigmoid((z_i - z_j) / (s deviation(z)))`, so that they have a derivative. From 0 to `2 (1 + rank) (1 + pruned)`.

    Args:
        temperature: of the probabilities.
        rank: the factor of the ranks.
        softness: `s`; ranks are hard as it goes to 0.
        pruned: the factor of the pruned copy's answers; 0 leaves it out.
        share: of the teacher's weights in convolutions and linear layers, the smallest, which the copy lacks.

    Raises:
        UserError: in `prepare`, answers of fewer than three classes; a pruned copy that says one class of all images.

    Source: Kim et al. 2024 (arXiv 2311.13934), of which the abstract alone was at hand: the form is the usual one (as in CMKD,
    arXiv 2410.06561), the softened ranks and the factors are ours.
    """

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
            said, plainly = (len(logits.argmax(1).unique()) for logits in (answer.pruned[self.share], answer.logits))
            if said == 1 < plainly:
                raise UserError(
                    f"the teacher without the smallest {100 * float(self.share):g} % of its weights says one class of all "
                    f"{len(batch)} images of a batch, where the teacher itself says {plainly}: prune less (share=), or not "
                    "(pruned=0)"
                )
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        assert answer.logits is not None, "a teacher gives what is in `needs`"
        apart = self.apart(output.logits, answer.logits)
        if self.pruned:
            apart = apart + self.pruned * self.apart(output.logits, answer.pruned[self.share])
        return apart

    def apart(self, ours: Float[Tensor, "b c"], theirs: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        """How far answers are from being correlated, by value and by rank."""
        options = {"temperature": self.temperature, "rank": self.rank, "softness": self.softness}
        return losses.r2kd(ours, theirs, **options, reduction="none")
