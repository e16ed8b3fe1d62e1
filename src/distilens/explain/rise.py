"""RISE: the mean of many random masks, weighted by the class's probability behind each mask."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from distilens.explain.baseline import baseline_of
from distilens.explain.explanation import Explainer, Explanation, Target, confidence_of, target_of
from distilens.explain.perturbation import score_masked
from distilens.foundation import randomness
from distilens.models.model import Model


class RISE(Explainer):
    """RISE: which pixels must be visible for the class to be recognised, from random masks; works for any model.

    `M = 1/(keep N) sum_n p_c(x behind m_n) m_n`: `p_c` is the probability of the class, `m_n` is a grid of zeros and ones (a
    share `keep` of ones), enlarged bilinearly and shifted at random. The map is not negative. All images get the same masks, from
    `seed`, so a map does not depend on the batch. A loss cannot use the map: it has no useful derivative.

    Args:
        masks: number of masks. A map's noise falls with its square root. The paper takes 4,000 to 8,000 at 224 pixels.
        grid: cells along a side.
        keep: share of the cells that are visible.
        baseline: the fill of hidden pixels: `mean` (the mean colour that the model expects), `zero` (black), or a grey level.
        chunk: rows (images times masks) per forward pass; by default the fastest number.

    Source: Petsiuk et al. 2018 (arXiv 1806.07421), section 3.
    """

    def __init__(
        self,
        *,
        masks: Annotated[int, Field(ge=1)] = 500,
        grid: Annotated[int, Field(ge=1)] = 7,
        keep: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        baseline: Literal["mean", "zero"] | Annotated[float, Field(ge=0, le=1)] = "mean",
        seed: int = 0,
        chunk: Annotated[int, Field(ge=1)] | None = None,
    ):
        self.masks, self.grid, self.keep, self.baseline, self.seed, self.chunk = (
            masks,
            grid,
            keep,
            baseline,
            seed,
            chunk,
        )

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        height, width = images.shape[2:]
        source = randomness.generator("rise", self.seed)
        cells = (torch.rand(self.masks, self.grid + 1, self.grid + 1, generator=source) < self.keep).to(images)
        shifts = torch.rand(self.masks, 2, generator=source)

        def masks(start: int, stop: int) -> Float[Tensor, "m h w"]:
            return shift_cells(cells[start:stop], shifts[start:stop], (height, width))

        with torch.no_grad():
            logits = model.logits(images)
            target = target_of(logits, target, model.task)
            probabilities = score_masked(
                model,
                images,
                baseline_of(model, images, self.baseline),
                masks,
                self.masks,
                confidence_of,
                target,
                chunk=self.chunk,
            )
            total = images.new_zeros(len(images), height * width)
            for start in range(0, self.masks, 256):
                visible = masks(start, min(start + 256, self.masks))
                total += probabilities[:, start : start + len(visible)] @ visible.flatten(1)
            maps = total.unflatten(1, (height, width)) / (self.keep * self.masks)
        return Explanation.of(maps, logits, target)


def shift_cells(
    cells: Float[Tensor, "m g g"], shifts: Float[Tensor, "m 2"], size: tuple[int, int]
) -> Float[Tensor, "m h w"]:
    """Masks from grids with one extra row and column: enlarged bilinearly, then cropped at a shift of less than one cell."""
    grid = cells.shape[1] - 1
    step = [-(-length // grid) for length in size]  # pixels of a cell, rounded up
    large = functional.interpolate(
        cells[:, None], [(grid + 1) * length for length in step], mode="bilinear", align_corners=False
    )[:, 0]
    top, left = ((shifts[:, axis] * step[axis]).long().to(cells.device) for axis in (0, 1))
    rows = top[:, None] + torch.arange(size[0], device=cells.device)
    columns = left[:, None] + torch.arange(size[1], device=cells.device)
    number = torch.arange(len(cells), device=cells.device)[:, None, None]
    return large[number, rows[:, :, None], columns[:, None, :]]
