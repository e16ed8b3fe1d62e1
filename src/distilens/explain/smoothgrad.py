"""SmoothGrad: the input gradient averaged over noisy copies of the image."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens.explain.explanation import Aim, Explainer, Explanation, Target, choose_target, target_of
from distilens.explain.gradient import Channels, over_channels
from distilens.explain.path import summed_gradients
from distilens.foundation import randomness
from distilens.models.model import Model


class SmoothGrad(Explainer):
    """SmoothGrad: the input gradient averaged over noisy copies of the image, which makes it less grainy.

    `M = over channels( 1/n sum_s d y_c(x + noise_s) / d x )`, with Gaussian noise whose standard deviation is `noise` times the
    image's own range of values, as in the paper. Every image gets the same `samples` noise fields, from `seed`, so its map does
    not depend on the batch. The map is not negative, except with `channels=sum`.

    Args:
        samples: number of noisy copies.
        noise: standard deviation, as a share of the range of the image's pixels; the paper uses 0.1 to 0.2.
        channels: `max` of the absolute values, `norm`, or the signed `sum`.
        chunk: rows (images times samples) per forward pass; by default the fastest number.

    Source: Smilkov et al. 2017 (arXiv 1706.03825), section 2.
    """

    def __init__(
        self,
        *,
        samples: Annotated[int, Field(ge=1)] = 25,
        noise: Annotated[float, Field(ge=0)] = 0.15,
        channels: Channels = "max",
        seed: int = 0,
        chunk: Annotated[int, Field(ge=1)] | None = None,
    ):
        self.samples, self.noise, self.seed, self.chunk = samples, noise, seed, chunk
        self.channels: Channels = channels
        self.signed = channels == "sum"

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        with torch.no_grad():
            logits = model.logits(images)
        target = target_of(logits, target, model.task)
        return Explanation.of(self.attribute(model, images, target), logits, target)

    def from_model(
        self, model: Model, images: Float[Tensor, "b c h w"], target: Target = None, *, create_graph: bool = True
    ) -> Float[Tensor, "b h w"]:
        target = choose_target(model, images, target)
        return self.attribute(model, images, target, create_graph=create_graph)

    def attribute(self, model: Model, images: Tensor, target: Aim, *, create_graph: bool = False) -> Tensor:
        fields = self.fields(images)
        spread = self.noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))

        def points(rows: slice, steps: slice) -> tuple[Tensor, Tensor]:
            return images[rows, None] + spread[rows, None] * fields[steps], images.new_full((), 1 / self.samples)

        total = summed_gradients(
            model, images, target, points, self.samples, chunk=self.chunk, create_graph=create_graph
        )
        return over_channels(total, self.channels)

    def fields(self, images: Tensor) -> Float[Tensor, "samples c h w"]:
        """The noise, with standard deviation 1."""
        source = randomness.generator("smoothgrad", self.seed)
        return torch.randn(self.samples, *images.shape[1:], generator=source).to(images)
