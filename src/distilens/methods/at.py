"""Attention transfer: match attention maps at several depths."""

from __future__ import annotations

from typing import Annotated, cast

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from distilens.core import Answer, Batch, Method, Model, Output, needs_of
from distilens.foundation.errors import UserError
from distilens.foundation.notation import bracket
from distilens.methods.map_match import MapMatch


class AT(Method):
    """Match where the teacher's features are strong: attention transfer.

    The loss is `mean_places (q_s - q_t)^2`, summed over taps, with `q = m / |m|` and `m = mean_k |A_k|^p`. It equals `map_match`
    with the explainer `attention` and `distance=at` at each tap. The numbers of channels may differ. If the grids differ, the
    smaller one is used. The default weight is the paper's, 1000.

    Args:
        taps: the same notation in both networks: `last-2`, `last-1` and `last` are the last features of the three coarsest grids.
        teacher_taps: the teacher's taps, if their names differ.
        power: `p`.

    Source: Zagoruyko and Komodakis 2017 (arXiv 1612.03928), equation 2. The equation sums over places; the published code takes
    the mean, as here. The paper's beta = 1000 is for the mean, and for the sum over three groups.
    """

    weight = 1000.0

    def __init__(
        self,
        *,
        taps: tuple[str, ...] = ("last-2", "last-1", "last"),
        teacher_taps: tuple[str, ...] = (),
        power: Annotated[float, Field(gt=0)] = 2.0,
    ):
        super().__init__()
        theirs = teacher_taps or taps
        if len(theirs) != len(taps):
            raise UserError(
                f"at needs one tap of the teacher per tap of the student; given {len(theirs)} and {len(taps)}"
            )
        matches = [
            MapMatch(explainer=f"attention:tap={bracket(their)},power={power:g}", tap=own, distance="at")
            for own, their in zip(taps, theirs, strict=True)
        ]
        self.needs = needs_of(matches)
        self.parts = nn.ModuleList(matches)  # on the student's device, with their counts

    def matches(self) -> list[MapMatch]:
        """The matched maps, one per tap."""
        return cast(list[MapMatch], list(self.parts))

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        for part in self.matches():
            student = part.prepare(student, batch, answer)
        return student

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Float[Tensor, " b"]:
        losses = [part.loss(batch, output, answer) for part in self.matches()]
        return sum(loss for loss in losses if loss is not None)  # type: ignore[return-value]

    def notes(self) -> dict[str, float]:
        shares = [part.notes()["empty maps"] for part in self.matches()]
        return {"empty maps": sum(shares) / len(shares)}
