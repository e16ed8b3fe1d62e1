"""Control maps that do not depend on the model: any explainer must score above them."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from distilens.explain.explanation import Explainer, Explanation, Target, target_of
from distilens.foundation import randomness
from distilens.models.grids import resized
from distilens.models.model import Model


class RandomMap(Explainer):
    """Control: random noise per image, independent of the image's content and of the model.

    Values are in [0, 1). `seed` and the image's own pixels determine them, so the same image always gets the same noise.

    Args:
        grid: cells along a side, enlarged bilinearly; 7 is as smooth as a CAM. By default every pixel has its own value.
    """

    def __init__(self, *, grid: Annotated[int, Field(ge=1)] | None = None, seed: int = 0):
        self.grid, self.seed = grid, seed

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        with torch.no_grad():
            logits = model.logits(images)
        size = (images.shape[2], images.shape[3])
        small = (self.grid, self.grid) if self.grid else size
        values = randomness.uniform("random map", number_of(images), self.seed, count=small[0] * small[1])
        return Explanation.of(resized(values.unflatten(1, small), size), logits, target_of(logits, target, model.task))


class CentreMap(Explainer):
    """Control: a Gaussian at the centre of the image, where the object of a photograph often is.

    `M = exp(-d² / (2 spread²))`, in (0, 1], where `d` is the distance from the centre in units of half the image's side.
    """

    def __init__(self, *, spread: Annotated[float, Field(gt=0)] = 0.5):
        self.spread = spread

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        with torch.no_grad():
            logits = model.logits(images)
        down, across = (
            (torch.arange(length, device=images.device) + 0.5) / length * 2 - 1 for length in images.shape[2:]
        )
        distance = down[:, None].square() + across[None, :].square()
        maps = (-distance / (2 * self.spread**2)).exp().expand(len(images), -1, -1).contiguous()
        return Explanation.of(maps, logits, target_of(logits, target, model.task))


def number_of(images: Tensor) -> Int[Tensor, " b"]:
    """A number per image, computed from its pixels: equal for equal images, independent of batch and device."""
    pixels = (images * 65535).round().long().flatten(1)
    place = torch.arange(1, pixels.shape[1] + 1, device=images.device)
    return randomness.mix_bits(pixels + place * -0x61C8864680B583EB).sum(1)
