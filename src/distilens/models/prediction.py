"""Predictions: classes and probabilities of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.models.taps import evaluating

if TYPE_CHECKING:
    from distilens.models.model import Model


@dataclass(frozen=True, eq=False)
class Prediction:
    """The predictions of a model: per picture the name of its class, and the probabilities of all classes."""

    classes: list[str]
    probabilities: Float[Tensor, "b classes"]

    def __len__(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name} {float(row.max()):.0%}" for name, row in zip(self.classes[:5], self.probabilities, strict=False)
        )
        return f"Prediction({shown}{', …' if len(self) > 5 else ''})"


def predicted(model: Model, pixels: Float[Tensor, "b 3 h w"], chunk: int) -> Prediction:
    """The model's predictions, in eval mode and without gradients, `chunk` pictures at a time."""
    with evaluating(model), torch.inference_mode():
        logits = [model.logits(part.to(model.device, torch.float32)).float() for part in pixels.split(chunk)]
    probabilities = torch.cat(logits).softmax(1).cpu().clone()
    return Prediction([str(model.classes[label]) for label in probabilities.argmax(1).tolist()], probabilities)
