"""Fills for removed pixels: the mean colour, blur, black, grey, or ROAD's noisy linear imputation."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distilens.explain.baseline import baseline_of
from distilens.foundation import randomness
from distilens.models.model import Model

Fill = Literal["mean", "blur", "zero", "noisy_linear"] | float
"""`mean`: the mean colour that the model expects; `blur`: the blurred image; `zero`: black; a grey level; `noisy_linear`: the
neighbours' weighted mean (see `noisy_linear`)."""

# (down, right): weight
NEIGHBOURS = {
    (down, right): 1 / 6 if 0 in (down, right) else 1 / 12
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if (down, right) != (0, 0)
}


def filled(model: Model, images: Float[Tensor, "b c h w"], fill: Fill) -> Float[Tensor, "#b c h w"]:
    """Completely removed images, which show only the fill; a single one if the fill is the same for all images."""
    if fill == "noisy_linear":  # no pixels remain to impute from
        return images.mean((2, 3), keepdim=True).expand_as(images)
    return baseline_of(model, images, fill)


def noisy_linear(
    images: Float[Tensor, "b c h w"], keep: Bool[Tensor, "b h w"], *, noise: float = 0.01, seed: int = 0
) -> Float[Tensor, "b c h w"]:
    """Noisy linear imputation: removed pixels become a weighted mean of their neighbours, which hides the removed shape.

    Each removed pixel is the mean of its eight neighbours (weight 1/6 beside, 1/12 diagonal; fewer at the border), including
    removed neighbours. This is one linear system per image, solved on the CPU. Then Gaussian `noise` is added, the same field for
    every image. If no pixel is kept, all pixels take the image's mean.

    Source: Rong et al. 2022 (ROAD, arXiv 2202.00449), section 4.
    """
    field = noise * torch.randn(images.shape[1:], generator=randomness.generator("noisy linear", seed))
    pixels, kept = images.detach().cpu(), keep.cpu()
    solved = [imputed(image, mask) for image, mask in zip(pixels, kept, strict=True)]
    result = torch.where(kept[:, None], pixels, torch.stack(solved) + field)
    return result.to(images)


def imputed(image: Float[Tensor, "c h w"], keep: Bool[Tensor, "h w"]) -> Float[Tensor, "c h w"]:
    """One image with its removed pixels imputed, by solving the linear system."""
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import splu

    known = keep.numpy()
    if known.all():
        return image
    if not known.any():
        return image.mean((1, 2), keepdim=True).expand_as(image)
    height, width = known.shape
    number = np.full(known.shape, -1)
    number[~known] = np.arange((~known).sum())
    down, right = np.nonzero(~known)
    values = image.double().numpy()
    rows, columns, entries = [], [], []
    total = np.zeros(len(down))
    given = np.zeros((len(down), len(values)))
    for (step_down, step_right), weight in NEIGHBOURS.items():
        there_down, there_right = down + step_down, right + step_right
        inside = np.flatnonzero((there_down >= 0) & (there_down < height) & (there_right >= 0) & (there_right < width))
        there = there_down[inside], there_right[inside]
        total[inside] += weight
        seen = known[there]
        given[inside[seen]] += weight * values[:, there[0][seen], there[1][seen]].T
        rows.append(inside[~seen])
        columns.append(number[there][~seen])
        entries.append(np.full((~seen).sum(), -weight))
    rows, columns = np.concatenate([*rows, np.arange(len(down))]), np.concatenate([*columns, np.arange(len(down))])
    system = csc_matrix((np.concatenate([*entries, total]), (rows, columns)), shape=(len(down), len(down)))
    solved = values.copy()
    solved[:, down, right] = splu(system).solve(given).T
    return torch.from_numpy(solved).to(image.dtype)
