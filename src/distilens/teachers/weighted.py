"""Several teachers whose probabilities are averaged: all alike, or by how well each answers the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens.core import Answer, Batch, Teacher
from distilens.tasks import Task
from distilens.tasks.classification import UNNAMED
from distilens.teachers.judges import level, on_smallest_grid
from distilens.teachers.needs import Need, explained_by, make_answer, of_kind
from distilens.teachers.several import Several, alike, trust_of


class WeightedTeacher(Several):
    """A weighted mean of the teachers' probabilities, with the same weights for everything else. A subclass implements `weights`.

    The logits are `log sum_k w_k softmax(z_k)`, so they are the mean of the probabilities at temperature 1. Features, scores and
    maps (scaled to strength 1, on the smallest grid) are weighted means. Maps explain what the joined logits say.
    """

    def weights(self, batch: Batch, logits: Float[Tensor, "teachers b ..."]) -> Float[Tensor, "teachers b"]:
        """The weight of each teacher for each image; they sum to 1 over the teachers."""
        raise NotImplementedError

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        wanted = self.parsed(needs)
        if not wanted:
            return Answer()
        answers = [teacher(batch, list(dict.fromkeys([*needs, "logits"]))) for teacher in self.teachers]
        given = [answer.logits for answer in answers if answer.logits is not None]
        logits = torch.stack(alike("logits", given)).float().log_softmax(2)
        weights = self.weights(batch, logits)
        joined = (logits + over(weights.log(), logits)).logsumexp(0)
        values = {}
        for need in wanted:
            if need.kind == "logits":
                values[need] = joined
                continue
            each = [need.read(answer) for answer in answers]
            if need.kind == "maps":
                maps = torch.stack([level(own) for own in on_smallest_grid(each)])
                values[need] = mean_by(weights, maps), explained_by(batch, joined)
            else:
                values[need] = mean_by(weights, torch.stack(alike(need.text, each)))
        return make_answer(values, trust_of(answers, lambda trusts: mean_by(weights, torch.stack(trusts))))

    def asks(self, needs: Sequence[Need]) -> list[Need]:
        return [] if of_kind(needs, "logits") else [Need.parse("logits")]


class MeanProbabilitiesTeacher(WeightedTeacher):
    """The mean of the teachers' probabilities: `log mean_k softmax(z_k)` as logits.

    It differs from `mean`, which averages logits: one sure teacher does not outvote the others.

    Args:
        teachers: at least two, with the same classes in the same order.

    Source: You et al. 2017 (KDD, "Learning from Multiple Teacher Networks"), equation 4, who average softened outputs.
    """

    name = "mean_probabilities"

    def __init__(self, teachers: Sequence[Teacher]):
        super().__init__(teachers)

    def weights(self, batch: Batch, logits: Float[Tensor, "teachers b ..."]) -> Float[Tensor, "teachers b"]:
        return logits.new_full(logits.shape[:2], 1 / len(logits))


class AdaptiveTeacher(WeightedTeacher):
    """Weights by each teacher's own loss on the image: `w = softmax_k(-loss_k / tau)`.

    `loss_k` is the task's loss of teacher k for the image and its target; for an image without a target all weigh the same. It is
    the soft form of following the best teacher: a small `tau` follows the best, a large one averages all.

    Args:
        teachers: at least two, with the same classes in the same order.
        tau: the temperature of the weights, above 0, in nats.

    Source: the idea of Ben Loussaief et al. 2023 (arXiv 2303.09494): a student adapts to several teachers, each trained on few
    images. Its abstract gives no formula, so the weights are ours. CA-MKD (Zhang et al. 2022, arXiv 2201.00007) weights by
    `1 - softmax(loss)` instead.
    """

    name = "adaptive"

    def __init__(self, teachers: Sequence[Teacher], *, tau: Annotated[float, Field(gt=0)] = 0.5):
        super().__init__(teachers, tau=tau)
        self.tau = tau

    def weights(self, batch: Batch, logits: Float[Tensor, "teachers b ..."]) -> Float[Tensor, "teachers b"]:
        task: Task = UNNAMED if batch.variant is None else batch.variant.split.task
        losses = torch.stack([task.masked_loss(own, batch.targets) for own in logits])
        return (-losses / self.tau).softmax(0)


def over(weights: Float[Tensor, "teachers b"], values: Tensor) -> Tensor:
    """Weights in a shape that broadcasts with values `[teachers b ...]`."""
    return weights.view(*weights.shape, *[1] * (values.ndim - 2))


def mean_by(weights: Float[Tensor, "teachers b"], values: Float[Tensor, "teachers b ..."]) -> Float[Tensor, "b ..."]:
    """The weighted mean over the teachers."""
    return (over(weights, values) * values).sum(0)
