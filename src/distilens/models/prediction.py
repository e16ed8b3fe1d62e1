"""Predictions: the classes of pictures and their probabilities, or the class of each place of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.data.pictures import as_images, is_picture
from distilens.models.taps import evaluating
from distilens.tasks.segmentation import on_grid

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


@dataclass(frozen=True, eq=False)
class Masks:
    """The predictions of a model for segmentation.

    Attributes:
        classes: per picture `[h w]` of its own size, uint8: the number of the class at each pixel.
        names: the classes, by number.
    """

    classes: list[Tensor]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        shown = ", ".join("×".join(map(str, mask.shape)) for mask in self.classes[:5])
        return f"Masks({shown}{', …' if len(self) > 5 else ''}; {len(self.names)} classes)"


def by_size(given: Any) -> list[Tensor]:
    """The pictures `[b 3 h w]` in order, in batches of one size each; for the forms of pictures see `as_images`."""
    many = isinstance(given, Sequence) and not isinstance(given, str | Path) and not is_picture(given)
    if not many or not given:
        return [as_images(given)]
    batches = [as_images([one]) for one in given]
    return [torch.cat(list(alike)) for _, alike in groupby(batches, key=lambda batch: batch.shape[2:])]


def predicted(model: Model, pictures: Sequence[Tensor], chunk: int) -> Prediction | Masks:
    """The model's predictions for batches of pictures `[b 3 h w]`, in eval mode and without gradients, `chunk` at a time."""
    chunks = [part.to(model.device, torch.float32) for batch in pictures for part in batch.split(chunk)]
    with evaluating(model), torch.inference_mode():
        if model.task.dense:
            masks = [model.task.predict(on_grid(model.logits(part).float(), part)).cpu().clone() for part in chunks]
            return Masks([mask for part in masks for mask in part], model.classes)
        logits = [model.logits(part).float() for part in chunks]
    probabilities = torch.cat(logits).softmax(1).cpu().clone()
    return Prediction([str(model.classes[label]) for label in probabilities.argmax(1).tolist()], probabilities)
