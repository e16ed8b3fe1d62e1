"""Judges: a number for each image that says how far a teacher is to be followed there."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from distilens.core import Batch, Model
from distilens.specs import Registry

JUDGES = Registry("judge", {"confidence": "distilens.teachers.judges:Confidence"})


class Confidence:
    """The probability in [0, 1] that the teacher gives to its own first class, of the untransformed image."""

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, " b"]:
        return model.logits(batch.canonical).softmax(1).amax(1)
