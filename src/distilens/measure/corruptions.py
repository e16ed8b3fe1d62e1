"""Corrupted test images: the accuracy of a model when the pictures are not as in training.

Source: Hendrycks & Dietterich 2019 (arXiv 1903.12261), with their parameters for CIFAR-10-C at severity 1 to 5. They suit
pictures of 32 pixels. In larger pictures `blur` grows with the shorter side, and the other parameters stay: `noise`, `contrast`
and `jpeg` act on pixels or on blocks of them, `pixelate` on a share of the side. (For ImageNet-C the authors chose stronger
ones.) An option sets a parameter directly: `jpeg:quality=30`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional

from distilens.data.batch import Batch
from distilens.data.splits import Split
from distilens.foundation import randomness
from distilens.foundation.errors import UserError
from distilens.foundation.estimate import Estimate
from distilens.foundation.notation import Registry, Spec
from distilens.measure.accuracies import evaluation_batches, predict
from distilens.models.model import Model
from distilens.models.objects import takes_modules

CORRUPTIONS = Registry(
    "corruption",
    {
        "jpeg": "distilens.measure.corruptions:JPEG",
        "noise": "distilens.measure.corruptions:Noise",
        "blur": "distilens.measure.corruptions:Blur",
        "contrast": "distilens.measure.corruptions:Contrast",
        "pixelate": "distilens.measure.corruptions:Pixelate",
    },
)

SIDE = 32
"""The side of the pictures that the parameters were chosen for."""
FINEST = 2.0**-25
"""Half of the distance between two random numbers."""
SEVERITY = 3

Severity = Annotated[int, Field(ge=1, le=5)]
Factor = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Corruption:
    """Change images in [0, 1] to worse ones; the same image always in the same way."""

    def __call__(self, images: Float[Tensor, "b c h w"], index: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        raise NotImplementedError(f"{type(self).__name__} corrupts nothing")


class JPEG(Corruption):
    """Compress as JPEG: blocks and smeared colours.

    Quality 80, 65, 58, 50, 40 at severity 1 to 5, with the colours at half of the resolution, as is Pillow's default. The pixels
    are rounded to 8 bits.

    Args:
        severity: 1 (weak) to 5 (strong).
        quality: 1 to 100, instead of that of the severity.
    """

    def __init__(self, *, severity: Severity = SEVERITY, quality: Annotated[int, Field(ge=1, le=100)] | None = None):
        self.quality = (80, 65, 58, 50, 40)[severity - 1] if quality is None else quality

    def __call__(self, images: Float[Tensor, "b c h w"], index: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        return each_picture(images, self.compress)

    def compress(self, picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=self.quality)
        return Image.open(stream)


class Noise(Corruption):
    """Add Gaussian noise to each pixel and colour.

    Standard deviation 0.04, 0.06, 0.08, 0.09, 0.10 at severity 1 to 5, then clipped to [0, 1]. An image has the same noise at
    each severity, scaled.

    Args:
        severity: 1 (weak) to 5 (strong).
        deviation: the standard deviation of the noise, above 0, instead of that of the severity.
    """

    def __init__(self, *, severity: Severity = SEVERITY, deviation: Positive | None = None):
        self.deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1] if deviation is None else deviation

    def __call__(self, images: Float[Tensor, "b c h w"], index: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        even = randomness.uniform("noise", index.to(images.device), count=images[0].numel())
        normal = torch.special.ndtri(even.double() + FINEST).to(images.dtype).view_as(images)
        return (images + self.deviation * normal).clamp(0, 1)


class Blur(Corruption):
    """Blur with a Gaussian.

    Its standard deviation is 0.4, 0.6, 0.7, 0.8, 1.0 pixels at severity 1 to 5 in a picture of 32 pixels, and grows in proportion
    to the shorter side. The borders are mirrored.

    Args:
        severity: 1 (weak) to 5 (strong).
        sigma: the standard deviation in pixels of the given pictures, above 0, instead of that of the severity.
    """

    def __init__(self, *, severity: Severity = SEVERITY, sigma: Positive | None = None):
        self.sigma, self.share = sigma, (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1] / SIDE

    def __call__(self, images: Float[Tensor, "b c h w"], index: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        side = min(images.shape[-2:])
        sigma = self.share * side if self.sigma is None else self.sigma
        reach = min(math.ceil(4 * sigma), side - 1)  # a border can be mirrored at most once
        return functional.gaussian_blur(images, [2 * reach + 1] * 2, [sigma] * 2).clamp(0, 1)


class Contrast(Corruption):
    """Reduce the contrast: each colour moves towards its mean over the image.

    The differences to the mean are multiplied by 0.75, 0.5, 0.4, 0.3, 0.15 at severity 1 to 5.

    Args:
        severity: 1 (weak) to 5 (strong).
        factor: above 0, at most 1, instead of that of the severity.
    """

    def __init__(self, *, severity: Severity = SEVERITY, factor: Factor | None = None):
        self.factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1] if factor is None else factor

    def __call__(self, images: Float[Tensor, "b c h w"], index: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        mean = images.mean((-2, -1), keepdim=True)
        return ((images - mean) * self.factor + mean).clamp(0, 1)


class Pixelate(Corruption):
    """Make the pixels coarser: shrink the picture and enlarge it again, both with a box filter.

    It is shrunk to 0.95, 0.9, 0.85, 0.75, 0.65 of its sides at severity 1 to 5. The pixels are rounded to 8 bits.

    Args:
        severity: 1 (weak) to 5 (strong).
        factor: above 0, at most 1, instead of that of the severity.
    """

    def __init__(self, *, severity: Severity = SEVERITY, factor: Factor | None = None):
        self.factor = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1] if factor is None else factor

    def __call__(self, images: Float[Tensor, "b c h w"], index: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        return each_picture(images, self.coarsen)

    def coarsen(self, picture: Image.Image) -> Image.Image:
        wide, high = (max(1, int(side * self.factor)) for side in picture.size)
        return picture.resize((wide, high), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)


def each_picture(
    images: Float[Tensor, "b c h w"], change: Callable[[Image.Image], Image.Image]
) -> Float[Tensor, "b c h w"]:
    """Change each image as a picture of Pillow with 8 bits."""
    if images.shape[1] not in (1, 3):
        raise UserError(f"jpeg and pixelate change grey or colour images, of 1 or 3 channels; given {images.shape[1]}")
    pixels = (images * 255).round().to(torch.uint8).cpu()
    changed = [functional.pil_to_tensor(change(functional.to_pil_image(image))) for image in pixels]
    return (torch.stack(changed).to(images.dtype) / 255).to(images.device)


# ------------------------------------------------------------------------------------------------ images, batches, accuracy


def build_corruption(kind: str, severity: int | None = None) -> Corruption:
    """Build a corruption from its notation; `severity` counts unless the notation has its own.

    Raises:
        UserError: a name, an option or a value is unknown.
    """
    spec = Spec.parse(kind)
    if severity is not None and "severity" not in spec.options:
        spec = spec.replaced(severity=severity)
    return CORRUPTIONS.build(spec)


def corrupt(
    images: Float[Tensor, "b c h w"], index: Int[Tensor, " b"], kind: str, severity: int = SEVERITY
) -> Float[Tensor, "b c h w"]:
    """Corrupted images, of the same shape and in [0, 1].

    Args:
        images: pixels in [0, 1].
        index: a number per image, such as `Batch.index`. The noise of an image depends on it, not on the order or the batch.
        kind: `jpeg`, `noise`, `blur`, `contrast` or `pixelate`, or with a parameter, such as `jpeg:quality=30`.
        severity: 1 (weak) to 5 (strong), unless the notation sets it.

    Raises:
        UserError: the kind, a parameter or the severity is unknown.
    """
    return build_corruption(kind, severity)(images, index)


def corrupted(batches: Iterable[Batch], kind: str, severity: int = SEVERITY) -> Iterator[Batch]:
    """The batches with corrupted images, for `predict`; arguments and errors as for `corrupt`.

    A batch forgets its variant and its source: answers stored for the clean images do not hold for it.
    """
    change = build_corruption(kind, severity)  # errors come before the first batch

    def corrupt_each() -> Iterator[Batch]:
        for batch in batches:
            images = change(batch.images, batch.index)
            yield batch.replaced(images=images, view=images, variant=None, source=None)

    return corrupt_each()


@takes_modules
def accuracy_under_shift(
    model: Model, split: Split, kinds: Sequence[str] = tuple(CORRUPTIONS), severity: int = SEVERITY
) -> dict[str, Estimate]:
    """The accuracy on corrupted images, by kind, with its interval; for other tasks than a classification, their metric.

    Args:
        model: a model, or a module.
        split: the images, such as `data.test`. Without images there is no number (n = 0).
        kinds: corruptions as for `corrupt`; by default all five.
        severity: 1 (weak) to 5 (strong), unless the notation sets it.

    Raises:
        UserError: a kind, a parameter or the severity is unknown; nothing was computed then.
    """
    for kind in kinds:
        build_corruption(kind, severity)
    if not len(split):
        return {kind: Estimate(None, n=0) for kind in kinds}
    batches = evaluation_batches(split, model.device)
    task, targets = split.task, torch.from_numpy(split.targets)
    answers = {kind: predict(model, corrupted(batches, kind, severity)) for kind in kinds}
    return {kind: task.measure(logits, targets)[task.metric.name] for kind, logits in answers.items()}
