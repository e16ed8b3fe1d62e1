"""The baselines for following several teachers: their mean, or a random one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.core import Answer, Batch, Teacher
from distilens.foundation.devices import to_device
from distilens.teachers.judges import level
from distilens.teachers.needs import Need, explained_by, moved_target, of_kind, spread
from distilens.teachers.several import Following, Several, joined, trust_of


class MeanTeacher(Several):
    """The mean of the teachers' answers.

    It averages logits (not probabilities; papers on several teachers call this baseline AVER), features of the same shape,
    scores and trust. Maps are first scaled to strength 1 (divided by the sum of their absolute values) and averaged on the
    smallest grid, so the maps of all teachers weigh the same.

    With `target=top1` each teacher explains its *own* top class, but the target is the top class of the mean logits. If the
    teachers disagree, the mean map also contains maps of other classes. `target=label` uses one class. A need for maps costs one
    more forward pass of its images if no method asks for their logits.

    Args:
        teachers: at least two, with the same classes in the same order.

    Source: the mean as a baseline: You et al. 2017 (KDD, "Learning from Multiple Teacher Networks") average softened outputs;
    the code of CA-MKD (Zhang et al. 2022, arXiv 2201.00007) averages logits under the name AVER.
    """

    name = "mean"

    def __init__(self, teachers: Sequence[Teacher]):
        super().__init__(teachers)

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        wanted = self.parsed(needs)
        if not wanted:
            return Answer()
        aims = [need for need in of_kind(wanted, "maps") if explains_own_class(need) and len(need.rows(batch))]
        more = ["logits"] if any(need.of == "images" for need in aims) and "logits" not in needs else []
        answers = [teacher(batch, [*needs, *more]) for teacher in self.teachers]
        first: dict[str, Tensor] = {}
        if any(need.of == "images" for need in aims):
            first["images"] = first_class(batch, answers)
        if any(need.of == "canonical" for need in aims):
            shown = batch.untransformed()
            first["canonical"] = first_class(shown, [teacher(shown, ["logits"]) for teacher in self.teachers])
        targets = {need.text: answers[0].targets[need.text] for need in of_kind(wanted, "maps")}
        for need in aims:
            rows = to_device(need.rows(batch), batch.images.device)
            own = moved_target(batch, need, first[need.of])
            targets[need.text] = spread(batch, rows, own[rows])
        trust = trust_of(answers, mean)
        return joined(answers, wanted, mean, mean_map, targets=targets, trust=trust)

    def asks(self, needs: Sequence[Need]) -> list[Need]:
        shown = {need.of for need in needs if need.kind == "maps" and explains_own_class(need)}
        return [replace(Need.parse("logits"), of=of) for of in sorted(shown)]


class RandomTeacher(Following):
    """One of the teachers, drawn at random per image and epoch: the baseline for every choice of a teacher.

    Args:
        teachers: at least two, with the same classes in the same order.
    """

    name = "random"
    drawing = True

    def __init__(self, teachers: Sequence[Teacher]):
        super().__init__(teachers)

    def follow(self, batch: Batch) -> tuple[Int[Tensor, " b"], None]:
        return (batch.draw("random teacher")[:, 0] * len(self.teachers)).long(), None


def explains_own_class(need: Need) -> bool:
    """Whether maps explain the teacher's own top class."""
    return need.classes == "one" and need.target == "top1"


def first_class(batch: Batch, answers: Sequence[Answer]) -> Int[Tensor, "b ..."]:
    """The top class of the mean logits; in a dense task with its places."""
    return explained_by(batch, mean([answer.logits for answer in answers if answer.logits is not None]))


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)


def mean_map(maps: list[Float[Tensor, "*b h w"]]) -> Float[Tensor, "*b h w"]:
    return mean([level(teacher_maps) for teacher_maps in maps])
