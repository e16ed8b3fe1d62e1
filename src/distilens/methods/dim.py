"""Seeing less of what the teacher does not look at."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distilens.core import Answer, Batch, Method
from distilens.explain.maps import normalised, resized
from distilens.specs import Spec


class Dim(Method):
    """Show the student its image darker where the teacher's map is low.

    `x' = x * (floor + (1 - floor) * m)`, with `m` the teacher's map of the untransformed image, moved with it, from 0 to 1 and at
    the image's resolution. An image whose map is empty is dimmed evenly. It has no loss of its own. A signed map counts by
    its size: the explainer's sign is not known here.

    Args:
        explainer: which map; its target is the teacher's own first class.
        floor: what is left of a pixel where the map is lowest, from 0 (black) to 1 (no change).
        share: of how many images, drawn anew in each epoch; the others stay as they are, and their maps are not made.

    Source: none; it is the simplest use of a map as an input, and what reading stored maps is measured with.
    """

    def __init__(
        self,
        *,
        explainer: str = "gradcam",
        floor: Annotated[float, Field(ge=0, le=1)] = 0.5,
        share: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ):
        super().__init__()
        self.floor, self.share = floor, share
        drawn = {"share": share, "draw": "dim"} if share < 1 else {}
        self.needs = (f"maps:{Spec.parse(explainer).replaced(of='canonical', **drawn)}",)

    def transform(self, batch: Batch, answer: Answer) -> Batch:
        strong = normalised(answer.maps[self.needs[0]], signed=True)
        light = self.floor + (1 - self.floor) * resized(strong, (batch.view.shape[-2], batch.view.shape[-1]))[:, None]
        if self.share < 1:
            light = light.where((batch.draw("dim") < self.share)[:, :, None, None], 1.0)
        return batch.replaced(view=batch.view * light)
