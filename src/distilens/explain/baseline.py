"""Baseline images, which stand for a missing image: black, a grey level, the mean colour, or the blurred image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from distilens.models.model import Model


def baseline_of(model: Model, images: Float[Tensor, "b c h w"], kind: str | float) -> Float[Tensor, "#b c h w"]:
    """The baseline images; a single one if the baseline is the same for all images.

    Args:
        kind: `mean` (the mean colour that the model expects), `zero` (black), `blur` (a Gaussian over half the shorter side),
            or a grey level in [0, 1].
    """
    if kind == "blur":
        return blur_images(images)
    if kind == "mean":
        return model.mean.to(images).expand(1, -1, *images.shape[2:])
    return torch.full_like(images[:1], 0.0 if kind == "zero" else float(kind))


def blur_images(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Images without their details: a Gaussian over half the shorter side."""
    return gaussian_blur(images, kernel_size=[2 * (min(images.shape[-2:]) // 4) + 1] * 2)
