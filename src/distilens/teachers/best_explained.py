"""Several teachers: follow, per image, the teacher that explains it best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor

from distilens.core import Batch, Teacher
from distilens.data.source import Rows
from distilens.data.splits import Data
from distilens.foundation.errors import UserError
from distilens.teachers.judges import JUDGES, NO_MASKS, build_judge
from distilens.teachers.needs import Need
from distilens.teachers.several import Following

JudgePart = Annotated[str, AfterValidator(lambda part: str(JUDGES.resolve(part)))]
"""A judge in notation, checked when the recipe is read, with every option written out."""
INSERTION = str(JUDGES.resolve("insertion"))


class BestExplainedTeacher(Following):
    """Follow, per image, the teacher with the best score among those that are right.

    `t*(x) = argmax_t q_t(x)`, over the teachers whose top class of the untransformed image is the label; `q` is the judge's
    score. If all are wrong, `trust` is 0, and no teacher's answer counts. In a tie the earlier teacher wins. With `tau`, the
    teacher is drawn in each epoch, with probability `softmax_t(q_t / tau)` among the teachers that are right.

    Logits, features, maps and targets of an image all come from the followed teacher. Maps of different grids are averaged to the
    smallest grid. The scores are those of the untransformed image, so each image is judged only once. Every teacher answers for
    every image; with stored answers this is a read.

    Args:
        teachers: at least two, with the same classes in the same order.
        judge: in notation: `insertion`, `average_drop`, `energy_in_mask`, `focus`, `consensus`, `confidence`.
        gate: follow only teachers that are right. An image without a label is not gated.
        tau: the temperature of the draw; with None the best teacher is followed.

    Source: the idea of Mehak 2018 (IIT Hyderabad, raiith.iith.ac.in/4087): of several teachers, the one with the best visual
    explanation teaches its logits and its map. The text does not define "best"; the judges, the gate and `tau` are ours.
    """

    name = "best_explained"

    def __init__(
        self,
        teachers: Sequence[Teacher],
        *,
        judge: JudgePart = INSERTION,
        gate: bool = True,
        tau: Annotated[float, Field(gt=0)] | None = None,
    ):
        self.judge, self.gate, self.tau, self.drawing = build_judge(judge), gate, tau, tau is not None
        super().__init__(teachers, judge=self.judge.notation, gate=gate, tau=tau)
        self.asked = (*self.judge.needs, *(["scores:correct"] if gate else []))
        self.remembered: dict[Rows, Remembered] = {}

    def asks(self, needs: Sequence[Need]) -> list[Need]:
        return [Need.parse(need) for need in self.asked]

    def check(self, data: Data) -> None:
        if "masks" in self.judge.reads and data.train.rows.masks is None:
            raise UserError(NO_MASKS)

    def follow(self, batch: Batch) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        scores, right = self.known(batch).chunk(2, dim=1)
        # a mean of teachers is right if most of them are
        allowed = (
            (right > 0.5) | (batch.targets < 0)[:, None] if self.gate else torch.ones_like(scores, dtype=torch.bool)
        )
        drawn = None if self.tau is None else batch.draw("followed")[:, 0]
        return choose_teacher(scores, allowed, self.tau, drawn), allowed.any(1).float()

    def known(self, batch: Batch) -> Float[Tensor, "b twice"]:
        """The score of every teacher, then whether each teacher is right. Each image is judged once."""
        if batch.variant is None:
            return self.judged(batch)
        rows = batch.variant.split.rows
        if rows not in self.remembered:
            self.remembered[rows] = Remembered(len(rows), 2 * len(self.teachers), batch.images.device)
        memory = self.remembered[rows]
        missing = np.flatnonzero(~memory.there[batch.variant.index])
        if len(missing):
            new = batch.select(missing)
            memory.values[new.index] = self.judged(new)
            memory.there[batch.variant.index[missing]] = True
        return memory.values[batch.index]

    def judged(self, batch: Batch) -> Float[Tensor, "b twice"]:
        shown = batch.untransformed()
        answers = [teacher(shown, self.asked) for teacher in self.teachers]
        scores = self.judge.compare(answers).float()
        correct = build_judge("correct").compare(answers).float() if self.gate else torch.ones_like(scores)
        return torch.cat([scores, correct], 1)


class Remembered:
    """Numbers per image of a set. `there` says, on the host, which images have them."""

    def __init__(self, images: int, numbers: int, device: torch.device):
        self.values = torch.zeros(images, numbers, device=device)
        self.there = np.zeros(images, bool)


def choose_teacher(
    scores: Float[Tensor, "b teachers"],
    allowed: Bool[Tensor, "b teachers"],
    tau: float | None,
    drawn: Float[Tensor, " b"] | None,
) -> Int[Tensor, " b"]:
    """The best allowed teacher (the first in a tie), or one drawn by `softmax(scores / tau)`. If none is allowed: all."""
    allowed = allowed | ~allowed.any(1, keepdim=True)
    scores = scores.masked_fill(~allowed, float("-inf"))
    if tau is None or drawn is None:
        return scores.argmax(1)
    upto = (scores / tau).softmax(1).cumsum(1)
    upto = upto / upto[:, -1:]  # ends in exactly 1, above every draw; a teacher with share 0 is never drawn
    return (drawn[:, None] >= upto).sum(1)
