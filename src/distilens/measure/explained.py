"""What is left of an image where a model's own explanation is strong: the images of which the paper takes features."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from distilens.core import Model
from distilens.errors import UserError
from distilens.explain.hirescam import HiResCAM
from distilens.explain.maps import resized
from distilens.measure.faithfulness import ranked
from distilens.measure.imputation import noisy_linear
from distilens.models.objects import takes_modules


@takes_modules
def most_relevant(
    model: Model, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], *, share: float = 0.5
) -> Float[Tensor, "b c h w"]:
    """The strongest `share` of each image by the model's HiResCAM for the label; the rest filled in from its neighbours.

    The pictures stay pixels in [0, 1], so that the model normalises them as any other. (The code that the paper was made with
    gives them to the network without; the later one does as we do.) An empty map hides the image's lower right half: of equal
    places the first in reading order are kept. The filling runs on the CPU, image by image.

    Source: Adhane et al. 2025 (arXiv 2412.13943): HiResCAM at the last tap, ROAD's least relevant half removed.

    Raises:
        UserError: images without a label, or labels that the model has no class for.
    """
    if int(labels.min()) < 0 or int(labels.max()) >= len(model.classes):
        raise UserError(
            f"explained images are explained for their labels, {int(labels.min())} to {int(labels.max())}, and the model answers "
            f"for {len(model.classes)} classes: take explained=false"
        )
    maps = HiResCAM()(model, images, labels.to(images.device)).maps
    size = (images.shape[2], images.shape[3])
    keep = ranked(resized(maps, size)) < round(share * size[0] * size[1])
    return noisy_linear(images, keep, noise=0.01)
