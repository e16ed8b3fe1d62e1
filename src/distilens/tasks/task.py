"""`Task`: what a target is, which answer is right, and what an explanation differentiates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from distilens.foundation.estimate import Estimate, mean_of
from distilens.foundation.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor


class Task:
    """What a data set asks of a model.

    A subclass must have `name`, `outputs`, `metric` and `loss`, and overrides what else differs from one number per image. Tasks
    are compared by value, so that a model of another task is refused: make a subclass a frozen dataclass. Its fields are saved
    with a model.

    Attributes:
        name: of the task; a method that holds for some tasks only lists their names.
        outputs: the number of channels on axis 1 of a model's output.
        metric: what the best checkpoint is chosen by, and what the page shows first.
        classes: the names of the classes; empty if the task has no classes.
        dense: whether there is a target for each place of an image, `[b h w]`, and outputs `[b outputs h w]`.
    """

    name: ClassVar[str] = ""
    dense: ClassVar[bool] = False
    metric: ClassVar[Metric] = Metric("loss", higher_is_better=False)
    outputs: int = 0
    classes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The task in two words: `10 classes`, or its name."""
        return f"{len(self.classes)} classes" if self.classes else self.name

    def valid(self, targets: Tensor) -> Bool[Tensor, "b ..."]:
        """Which targets (in a dense task, the targets of which places) are there: numbers of at least 0, or not NaN."""
        return ~targets.isnan() if targets.is_floating_point() else targets >= 0

    def known(self, targets: Tensor) -> Bool[Tensor, " b"]:
        """Which images have a target."""
        values = self.valid(targets)
        return values.flatten(1).any(1) if values.ndim > 1 else values

    def strata(self, targets: np.ndarray) -> Int[np.ndarray, " n"]:
        """A number per image. Splits, `limit` and `shots` keep the share of each number; -1 is for images without a target.

        By default, all images with a target are one stratum.
        """
        import torch

        return self.known(torch.from_numpy(targets)).numpy().astype(np.int64) - 1

    def moved(self, targets: Tensor, geometry: Any) -> Tensor:
        """The targets of images that were cropped and flipped by a `Geometry` (or None); dense targets move with their image."""
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, " b"]:
        """The loss per image, for images with a target."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def masked_loss(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, " b"]:
        """The loss per image; an image without a target gives 0 and no gradient (that of a NaN times 0 would be NaN)."""
        return self.loss(outputs, targets.masked_fill(~self.valid(targets), 0)).where(self.known(targets), 0)

    def values(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, " b"]:
        """The metric per image, for images with a target."""
        return self.loss(outputs, targets)

    def tally(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, " k"]:
        """Sums from which `score` computes the metric; they add over batches and processes."""
        import torch

        known = self.known(targets)
        values = self.values(outputs[known], targets[known]).float()
        return torch.stack([values.sum(), values.square().sum(), known.sum().float()])

    def value(self, tally: Float[Tensor, " k"]) -> float | None:
        """The metric from summed tallies, without an interval, as training asks for it; None without a target."""
        total, _, count = tally.tolist()
        return total / count if count else None

    def score(self, tally: Float[Tensor, " k"]) -> dict[str, Estimate]:
        """The metric, and others if there are any, from summed tallies: the mean with its 95 % interval."""
        total, squares, count = tally.double().tolist()
        if not count:
            return {self.metric.name: Estimate(None, n=0)}
        mean = total / count
        variance = max(0.0, squares / count - mean**2) * count / max(count - 1, 1)
        half = 1.96 * math.sqrt(variance / count)
        return {self.metric.name: Estimate(mean, mean - half, mean + half, int(count))}

    def compact(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the file of predictions keeps of the outputs. All functions of the task that score outputs take it as well."""
        return outputs

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Estimate]:
        """The metric, and others if there are any, of all images of a split, with intervals."""
        return self.score(self.tally(outputs, targets))

    def apart(self, outputs: Tensor, others: Tensor, targets: Tensor) -> Estimate | None:
        """The metric of a model minus that of another on the same images; None without a target."""
        known = self.known(targets)
        if not known.any():
            return None
        one, other = (self.values(given[known], targets[known]).double() for given in (outputs, others))
        return mean_of(one - other)

    def explained(self, outputs: Float[Tensor, "b k ..."]) -> Int[Tensor, "b ..."]:
        """The output that is explained if the user names none: the largest per image."""
        return outputs.detach().argmax(1)

    def aim(self, outputs: Float[Tensor, "b k ..."], classes: Int[Tensor, " b"]) -> Int[Tensor, "b ..."]:
        """What is explained if the user names an output per image: that output. A dense task adds the places."""
        return classes

    def scalar(self, outputs: Float[Tensor, "b k ..."], of: Int[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        """The number per image that an explanation differentiates: the output `of`."""
        return outputs.gather(1, of[:, None])[:, 0]

    def predict(self, outputs: Float[Tensor, "b k ..."]) -> Tensor:
        """The answers: class numbers, or values."""
        return outputs.squeeze(1)

    def confidence(self, outputs: Float[Tensor, "b k ..."], of: Int[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        """How strongly the model answers `of`: faithfulness measures how it changes as pixels are removed."""
        return self.scalar(outputs, of)

    def describe(self, prediction: Any) -> str:
        """One answer, or one target, in words."""
        return self.metric.written(float(prediction)) if np.ndim(prediction) == 0 else ""

    def check_outputs(self, outputs: Tensor) -> str:
        """What is wrong with the shape of a network's output for one image; empty if it fits."""
        kind = "classes" if self.classes else "outputs"
        if outputs.ndim != 2:
            dense = outputs.ndim == 4 and outputs.shape[2:].numel() > 1
            advice = ". For one answer per place, the data need a mask per image" if dense and self.classes else ""
            return f"logits of the shape {list(outputs.shape)} for one image: expected one answer per image, [b {kind}]{advice}"
        if outputs.shape[1] != self.outputs:
            asked = f"data has {self.outputs} classes" if self.classes else f"task {self.name} has {self.outputs}"
            return f"{outputs.shape[1]} {'logits' if self.classes else kind}, but the {asked}"
        return ""


def as_task(given: Task | Sequence[str]) -> Task:
    """A task as it is; names as a classification into them."""
    from distilens.tasks.classification import Classification

    return given if isinstance(given, Task) else Classification(tuple(map(str, given)))


def with_classes(task: Task, names: Sequence[str]) -> Task:
    """The same kind of task with other classes; a task without classes becomes a classification."""
    return replace(cast(Any, task), classes=tuple(map(str, names))) if task.classes else as_task(names)
