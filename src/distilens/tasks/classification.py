"""Classification: one class per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate, share_apart, share_from
from distilens.foundation.metric import ACCURACY
from distilens.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Classification(Task):
    """One class per image. A target is the position of its class; -1 means that there is none.

    The loss is the cross-entropy, the metric the accuracy, and an explanation differentiates the logit of a class.

    Args:
        classes: their names, in the order of the logits.
    """

    classes: tuple[str, ...]

    name = "classification"
    metric = ACCURACY

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return len(self.classes)

    def known(self, targets: Tensor) -> Bool[Tensor, " b"]:
        return targets >= 0

    def strata(self, targets: np.ndarray) -> Int[np.ndarray, " n"]:
        return targets

    def loss(
        self, outputs: Float[Tensor, "b classes"], targets: Int[Tensor, " b"], *, smoothing: float = 0.0
    ) -> Float[Tensor, " b"]:
        return cross_entropy(outputs, targets, smoothing=smoothing)

    def masked_loss(self, outputs: Float[Tensor, "b classes"], targets: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        return cross_entropy(outputs, targets)  # which gives 0 for -1, and checks all other numbers

    def values(self, outputs: Float[Tensor, "b classes"], targets: Int[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Whether the top class is the target; logits with a NaN are never right."""
        return right(outputs, targets)

    def score(self, tally: Float[Tensor, 3]) -> dict[str, Estimate]:
        """The accuracy, with Wilson's interval."""
        hits, _, count = tally.tolist()
        return {"accuracy": share_from(round(hits), round(count)) if count else Estimate(None, n=0)}

    def apart(self, outputs: Tensor, others: Tensor, targets: Tensor) -> Estimate | None:
        """The difference of two accuracies, with Newcombe's interval."""
        known = targets >= 0
        return share_apart(right(outputs, targets)[known], right(others, targets)[known])

    def predict(self, outputs: Float[Tensor, "b classes"]) -> Int[Tensor, " b"]:
        return outputs.argmax(1)

    def confidence(self, outputs: Float[Tensor, "b classes"], of: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The probability of a class, in [0, 1]."""
        return outputs.float().softmax(1).gather(1, of[:, None])[:, 0]

    def describe(self, prediction: Any) -> str:
        number = int(prediction)
        return self.classes[number] if number >= 0 else ""


UNNAMED = Classification(())
"""A classification into classes without names: the task of an output or a split that does not say more."""


def cross_entropy(
    logits: Float[Tensor, "b classes"], labels: Int[Tensor, " b"], *, smoothing: float = 0.0
) -> Float[Tensor, " b"]:
    """The cross-entropy per image, in nats; 0 for images without a label (-1).

    Raises:
        UserError: there is not one label per image, or (on the CPU) a label is not a class.
    """
    from torch.nn import functional

    check_labels("ce", labels, logits)
    return functional.cross_entropy(
        logits.float(), labels, ignore_index=-1, label_smoothing=smoothing, reduction="none"
    )


def right(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Whether the top class of each image is its label; logits with a NaN are never right."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)


def check_labels(name: str, labels: Tensor, logits: Tensor) -> None:
    """Raise a `UserError` unless there is one label per image, and each is -1 or one of the classes.

    The values are checked on the CPU only: on a GPU this would wait for the device.
    """
    import torch

    fits = isinstance(labels, torch.Tensor) and labels.shape == logits.shape[:1] and labels.dtype == torch.long
    if not fits:
        given = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise UserError(f"{name} needs one label per image, torch.int64 [{len(logits)}]; given {given}")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[(labels < -1) | (labels >= logits.shape[1])]
        if len(wrong):
            raise UserError(
                f"{name}: labels go from 0 to {logits.shape[1] - 1}, and -1 means no label; given {int(wrong[0])}"
            )
