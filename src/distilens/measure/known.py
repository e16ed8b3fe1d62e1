"""What was computed of a model before and is asked again: all students of a study have the same teacher."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

from distilens.data.splits import Split
from distilens.models.model import Model
from distilens.models.saved import fingerprint_of

Result = TypeVar("Result")


class Known:
    """Results by model, images and purpose, in memory."""

    def __init__(self) -> None:
        self.results: dict[Hashable, object] = {}

    def get(self, model: Model, split: Split, purpose: Hashable, compute: Callable[[], Result]) -> Result:
        """The result for a model with these weights on these images; it is computed the first time."""
        key = (fingerprint_of(model), split.origin, split.index.tobytes(), purpose)
        if key not in self.results:
            self.results[key] = compute()
        return cast(Result, self.results[key])
