"""Occlusion: how much the class's logit falls when a window hides part of the image."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from distilens.explain.baseline import baseline_of
from distilens.explain.explanation import Explainer, Explanation, Target, scores_of, target_of
from distilens.explain.perturbation import score_masked
from distilens.models.model import Model


class Occlusion(Explainer):
    """Occlusion: how much the class's logit falls when a window hides part of the image; works for any model.

    `M_i = mean over the windows W that contain i of y_c(x) - y_c(x with W hidden)`. Maps are signed. Windows are cut off at the
    lower and right border. A loss cannot use the map: it has no useful derivative.

    Args:
        window: side of the square window in pixels; by default a quarter of the image's shorter side.
        stride: distance between windows in pixels; by default half a window.
        baseline: the fill of hidden pixels: `mean` (the mean colour that the model expects), `zero` (black), or a grey level.
        chunk: rows (images times windows) per forward pass; by default the fastest number.

    Source: Zeiler and Fergus 2014 (arXiv 1311.2901), section 4.2.
    """

    signed = True

    def __init__(
        self,
        *,
        window: Annotated[int, Field(ge=1)] | None = None,
        stride: Annotated[int, Field(ge=1)] | None = None,
        baseline: Literal["mean", "zero"] | Annotated[float, Field(ge=0, le=1)] = "mean",
        chunk: Annotated[int, Field(ge=1)] | None = None,
    ):
        self.window, self.stride, self.baseline, self.chunk = window, stride, baseline, chunk

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        height, width = images.shape[2:]
        side = self.window or max(1, min(height, width) // 4)
        stride = min(self.stride or max(1, side // 2), side)
        down, across = (math.ceil(max(0, length - side) / stride) + 1 for length in (height, width))
        row, column = (torch.arange(length, device=images.device) for length in (height, width))

        def hidden(start: int, stop: int) -> Tensor:
            number = torch.arange(start, stop, device=images.device)[:, None]
            top, left = number // across * stride, number % across * stride
            rows, columns = (row >= top) & (row < top + side), (column >= left) & (column < left + side)
            return rows[:, :, None] & columns[:, None, :]

        with torch.no_grad():
            logits = model.logits(images)
            target = target_of(logits, target, model.task)
            fill = baseline_of(model, images, self.baseline)
            count = down * across
            after = score_masked(
                model, images, fill, lambda *bounds: ~hidden(*bounds), count, scores_of, target, chunk=self.chunk
            )
            fallen = scores_of(logits, target, model.task)[:, None] - after
            total, covered = images.new_zeros(len(images), height * width), images.new_zeros(height * width)
            for start in range(0, count, 256):
                windows = hidden(start, min(start + 256, count)).flatten(1).to(images)
                total += fallen[:, start : start + 256] @ windows
                covered += windows.sum(0)
            maps = (total / covered.clamp_min(1)).unflatten(1, (height, width))
        return Explanation.of(maps, logits, target)
