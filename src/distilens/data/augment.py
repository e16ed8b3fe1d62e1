"""Augmentation: box, colours, erasing and mixing, drawn for whole batches from (data seed, variant, index) only.

`crop:padding=4` and `resized_crop` choose the geometry; both take the same further options. Nothing depends on the order of
the batches, so variant k of an image is the same picture in every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from distilens.data.batch import Batch, Mixed
from distilens.data.geometry import Geometry
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Registry
from distilens.tasks import Task
from distilens.tasks.classification import UNNAMED
from distilens.tasks.segmentation import VOID

Flip = Literal["random", "alternate", "none"]
Mix = Literal["none", "mixup", "cutmix"]
Share = Annotated[float, Field(ge=0, le=1)]
Draw = Callable[..., Tensor]  # draw(name, count) -> [b, count] in [0, 1)


@dataclass(frozen=True)
class Augment:
    """The settings of an augmentation; made by `crop`, `resized_crop` or `none`."""

    padding: int = 0
    area: tuple[float, float] | None = None
    ratio: tuple[float, float] = (1.0, 1.0)
    flip: Flip = "none"
    jitter: float = 0.0
    erase: float = 0.0
    mix: Mix = "none"

    @property
    def still(self) -> bool:
        """Whether there is no augmentation, so that all variants of an image are equal."""
        return self == Augment()

    def geometry(self, draw: Draw, variant: int, source: tuple[int, int]) -> Geometry:
        """The source box and flip of each image."""
        u = draw("geometry", 4)
        if self.flip == "alternate":
            # an image and its mirror alternate, so that two epochs show each once (Keller Jordan 2024, arXiv 2404.00498)
            flip = (draw("side", 1, fixed=True)[:, 0] < 0.5) ^ bool(variant % 2)
        else:
            flip = (u[:, 0] < 0.5) & (self.flip == "random")
        height, width = source
        if self.area is None:
            corner = (u[:, 1:3] * (2 * self.padding + 1)).floor() - self.padding
            sides = [corner.new_full((len(u), 1), side) for side in source]  # made on the device: no copy to wait for
            box = torch.cat([corner, *sides], 1)
            return Geometry(box, flip, source, source, whole=True)
        area = (self.area[0] + u[:, 1] * (self.area[1] - self.area[0])) * height * width
        low, high = (math.log(side) for side in self.ratio)
        ratio = (low + draw("ratio", 1)[:, 0] * (high - low)).exp()
        sides = torch.stack([(area / ratio).sqrt().clamp(max=height), (area * ratio).sqrt().clamp(max=width)], 1)
        size = sides.round().clamp(min=1)
        corner = (u[:, 2:4] * torch.stack([height + 1 - size[:, 0], width + 1 - size[:, 1]], 1)).floor()
        return Geometry(torch.cat([corner, size], 1), flip, source, source, whole=False)

    def colour(self, images: Tensor, draw: Draw) -> Tensor:
        """Change brightness, contrast and saturation, each by a factor in [1 - jitter, 1 + jitter]."""
        if not self.jitter:
            return images
        factors = 1 + self.jitter * (2 * draw("jitter", 3) - 1)
        brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
        images = images * brightness
        images = images.mean((1, 2, 3), keepdim=True).lerp(images, contrast)
        return images.mean(1, keepdim=True).lerp(images, saturation).clamp(0, 1)

    def erased(self, batch: Batch, draw: Draw, task: Task = UNNAMED) -> Batch:
        """With probability `erase`, paint a box of up to a third of each side grey; its evidence becomes 0, its classes void."""
        if not self.erase:
            return batch
        u = draw("erase", 5)
        hole = window(u[:, 1:3], 0.1 + 0.23 * u[:, 3:5], batch.images) & (u[:, 0] < self.erase)[:, None, None]
        images = torch.where(hole[:, None], 0.5, batch.images)
        mask = batch.mask if batch.mask is None else batch.mask * ~hole
        targets = batch.targets.masked_fill(hole, VOID) if task.dense else batch.targets
        return replace(batch, images=images, view=images, mask=mask, targets=targets)

    def mixed(self, batch: Batch, other: Batch, draw: Draw, task: Task = UNNAMED) -> Batch:
        """Blend in (mixup) or paste in (cutmix) another training image; the share is uniform in [0, 1].

        In a dense task the targets are pasted too.

        Raises:
            UserError: mixup in a dense task, whose places would have two classes.
        """
        if task.dense and self.mix == "mixup":
            raise UserError(f"mix=mixup gives each place two classes, which a {task.name} cannot have: take mix=cutmix")
        u = draw("mix", 3)
        if self.mix == "mixup":
            keep = u[:, 0, None, None].expand(-1, *batch.images.shape[-2:])
        else:
            side = (1 - u[:, 0:1]).sqrt()
            keep = (~window(u[:, 1:3], side.expand(-1, 2), batch.images)).float()
        images = batch.images * keep[:, None] + other.images * (1 - keep[:, None])
        mask = batch.mask if batch.mask is None or other.mask is None else batch.mask * keep + other.mask * (1 - keep)
        if task.dense:
            targets = torch.where(keep.bool(), batch.targets, other.targets)
            return replace(batch, images=images, view=images, mask=mask, targets=targets)
        return replace(batch, images=images, view=images, mask=mask, mixed=Mixed(other.targets, keep.mean((1, 2))))


def window(centre: Tensor, side: Tensor, images: Tensor) -> Tensor:
    """Boxes `[b h w]` from centres and sides, which are shares of the image."""
    inside = []
    for axis, length in enumerate(images.shape[-2:]):
        place = (torch.arange(length, device=images.device) + 0.5) / length
        inside.append((place - centre[:, axis, None]).abs() < side[:, axis, None] / 2)
    return inside[0][:, :, None] & inside[1][:, None, :]


def none() -> Augment:
    """No augmentation: the images unchanged."""
    return Augment()


def crop(
    *,
    padding: Annotated[int, Field(ge=0)] = 4,
    flip: Flip = "random",
    jitter: Share = 0.0,
    erase: Share = 0.0,
    mix: Mix = "none",
) -> Augment:
    """Shift by up to `padding` pixels with reflection at the edge, and flip: for small images.

    Source: He et al. 2016 (arXiv 1512.03385), section 4.2, who pad with zeros.
    """
    return Augment(padding=padding, flip=flip, jitter=jitter, erase=erase, mix=mix)


def resized_crop(
    *,
    area: tuple[Share, Share] = (0.35, 1.0),
    ratio: tuple[float, float] = (0.75, 1.3333),
    flip: Flip = "random",
    jitter: Share = 0.0,
    erase: Share = 0.0,
    mix: Mix = "none",
) -> Augment:
    """Cut out a box of random area and shape, resize it, and flip: for photographs.

    Source: Szegedy et al. 2015 (arXiv 1409.4842), section 6; their area starts at 0.08. A box that does not fit is clipped.
    """
    return Augment(area=area, ratio=ratio, flip=flip, jitter=jitter, erase=erase, mix=mix)


AUGMENTS = Registry(
    "augmentation",
    {
        "none": "distilens.data.augment:none",
        "crop": "distilens.data.augment:crop",
        "resized_crop": "distilens.data.augment:resized_crop",
    },
)
