"""Integrated Gradients: gradients accumulated on the straight path from a baseline image to the image."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens.explain.activation import full
from distilens.explain.baseline import baseline_of
from distilens.explain.explanation import Aim, Explainer, Explanation, Target, choose_target, scores_of, target_of
from distilens.explain.path import summed_gradients
from distilens.models.model import Model


class IntegratedGradients(Explainer):
    """Integrated Gradients: how much each pixel adds to the class's logit on the path from a baseline to the image.

    `IG_i = (x_i - b_i) * integral_0^1 d y_c(b + t (x - b)) / d x_i dt`, by quadrature, summed over the colour channels. Maps are
    signed. Over all pixels they sum to `y_c(x) - y_c(b)` (completeness); `residual` is the error of that sum, in logits.

    Steps run in chunks of rows, so memory does not grow with `steps`. In a loss (`from_model`) the backward pass computes each
    chunk again. The map has a derivative if the network has a second derivative. With ReLUs, which are piecewise linear, the
    loss trains through the weights of the active paths.

    Args:
        steps: points on the path.
        rule: `gauss` (Gauss-Legendre), `trapezoid` (ends included), or `riemann` (midpoints). Captum's trapezoid has
            weights that sum to (n-1)/n; these sum to 1.
        baseline: `mean` (the mean colour that the model expects: zero after normalisation, the default in other libraries),
            `zero` (black), `blur` (the blurred image), or a grey level in [0, 1]. With black, dark pixels get no attribution; on
            CIFAR-10 the maps were no better than noise (docs/explainers.md).
        channels: `sum` adds the signed values of the colours, so the map sums to the change of the logit; `size` adds their
            absolute values, so the map is not negative.
        chunk: rows (images times steps) per forward pass; by default the fastest number.

    Source: Sundararajan, Taly and Yan 2017 (arXiv 1703.01365), equation 1.
    """

    signed = True

    def __init__(
        self,
        *,
        steps: Annotated[int, Field(ge=1)] = 32,
        rule: Literal["gauss", "trapezoid", "riemann"] = "gauss",
        baseline: Literal["zero", "mean", "blur"] | Annotated[float, Field(ge=0, le=1)] = "mean",
        channels: Literal["sum", "size"] = "sum",
        chunk: Annotated[int, Field(ge=1)] | None = None,
    ):
        self.steps, self.rule, self.baseline, self.channels, self.chunk = steps, rule, baseline, channels, chunk
        self.signed = channels == "sum"

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        start = self.start(model, images)
        with torch.no_grad():
            logits = model.logits(images)
            # a baseline that does not depend on the image is the same for all
            before = model.logits(start if self.baseline == "blur" else start[:1])
        target = target_of(logits, target, model.task)
        attributed = self.attribute(model, images, start, target)
        gained = scores_of(logits, target, model.task) - scores_of(before.expand_as(logits), target, model.task)
        residual = attributed.sum((1, 2, 3)) - gained
        return Explanation.of(full(self.over_channels(attributed)), logits, target, residual=residual)

    def over_channels(self, attributed: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        return (attributed if self.channels == "sum" else attributed.abs()).sum(1)

    def from_model(
        self, model: Model, images: Float[Tensor, "b c h w"], target: Target = None, *, create_graph: bool = True
    ) -> Float[Tensor, "b h w"]:
        target = choose_target(model, images, target)
        start = self.start(model, images)
        return self.over_channels(self.attribute(model, images, start, target, create_graph=create_graph))

    def attribute(
        self, model: Model, images: Tensor, start: Tensor, target: Aim, *, create_graph: bool = False
    ) -> Float[Tensor, "b c h w"]:
        path = images - start
        at, weight = quadrature_on(self.rule, self.steps, images.device, images.dtype)

        def points(rows: slice, steps: slice) -> tuple[Tensor, Tensor]:
            return torch.addcmul(start[rows, None], at[steps], path[rows, None]), weight[steps]

        total = summed_gradients(model, images, target, points, self.steps, chunk=self.chunk, create_graph=create_graph)
        return path * total

    def start(self, model: Model, images: Tensor) -> Tensor:
        """The baseline images, one per image."""
        return baseline_of(model, images, self.baseline).expand_as(images)


@cache
def quadrature_on(rule: str, steps: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`quadrature` as tensors that broadcast with images, copied to a device once."""
    with torch.inference_mode(False):  # later calls may need gradients
        points, weights = (torch.tensor(values, dtype=dtype, device=device) for values in quadrature(rule, steps))
        return points[:, None, None, None], weights[:, None, None, None]


def quadrature(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """Points in [0, 1] and weights that sum to 1."""
    if rule == "gauss":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return ((points + 1) / 2).tolist(), (weights / 2).tolist()
    if rule == "trapezoid" and steps > 1:
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps).tolist(), weights.tolist()
    return ((np.arange(steps) + 0.5) / steps).tolist(), [1 / steps] * steps
