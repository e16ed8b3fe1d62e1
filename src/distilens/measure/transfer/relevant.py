"""Explained images: only the part of an image where the model's own map is strong remains; the paper takes their features."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from distilens.explain.hirescam import HiResCAM
from distilens.foundation.errors import UserError
from distilens.measure.maps.faithfulness import ranked
from distilens.measure.maps.imputation import noisy_linear
from distilens.models.grids import resized
from distilens.models.model import Model
from distilens.models.objects import takes_modules


@takes_modules
def most_relevant(
    model: Model, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], *, share: float = 0.5
) -> Float[Tensor, "b c h w"]:
    """Images that keep their strongest `share` by the model's HiResCAM for the label; other pixels are imputed.

    The images stay pixels in [0, 1], and the model normalises them as usual. (The code used for the paper skips the
    normalisation; its later version does the same as ours.) Equal values rank in reading order, so an empty map hides the lower
    half of the image. The imputation runs on the CPU, image by image.

    Source: Adhane et al. 2025 (arXiv 2412.13943): HiResCAM at the last tap, ROAD's least relevant half removed.

    Raises:
        UserError: images without a label, or labels outside the model's classes.
    """
    if int(labels.min()) < 0 or int(labels.max()) >= len(model.classes):
        raise UserError(
            f"explained images are explained for their labels, {int(labels.min())} to {int(labels.max())}, but the model has "
            f"{len(model.classes)} classes: take explained=false"
        )
    maps = HiResCAM()(model, images, labels.to(images.device)).maps
    size = (images.shape[2], images.shape[3])
    keep = ranked(resized(maps, size)) < round(share * size[0] * size[1])
    return noisy_linear(images, keep, noise=0.01)
