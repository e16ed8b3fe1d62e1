"""Expected Gradients: Integrated Gradients averaged over many baselines, which are real images."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distilens.data import load
from distilens.explain.explanation import Aim, Explainer, Explanation, Target, choose_target, scores_of, target_of
from distilens.explain.path import rows_at_once, summed_gradients
from distilens.explain.reference import reference_images
from distilens.foundation import randomness
from distilens.foundation.errors import UserError
from distilens.models.model import Model


class ExpectedGradients(Explainer):
    """Expected Gradients: Integrated Gradients averaged over many real images as baselines.

    `EG_i = mean over (b, t) of (x_i - b_i) * d y_c(b + t (x - b)) / d x_i`, with baselines `b` sampled from the reference images
    and `t` from (0, 1), summed over the colour channels. Maps are signed and sum to `y_c(x) - mean y_c(b)`; `residual` is the
    error of that sum, in logits. Every image gets the same `samples` pairs (b, t), with t in equal strata, so its map does not
    depend on the batch. With one reference image it equals `ig:rule=riemann` with that baseline. It has the same derivatives as
    `ig`.

    Args:
        samples: pairs of baseline and t.
        data: the data set, in notation, whose training images are the reference. By default `distilens explain` and runs take
            their own data; in Python, set `reference`.
        chunk: rows (images times samples) per forward pass; by default the fastest number.

    Source: Erion et al. 2021 (arXiv 1906.10670), equation 3.
    """

    signed = True

    def __init__(
        self,
        *,
        samples: Annotated[int, Field(ge=1)] = 64,
        data: str | None = None,
        seed: int = 0,
        chunk: Annotated[int, Field(ge=1)] | None = None,
    ):
        self.samples, self.data, self.seed, self.chunk = samples, data, seed, chunk
        self.compares = data is None

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        baselines = self.baselines(images)
        with torch.no_grad():
            logits = model.logits(images)
            before = torch.cat([model.logits(part) for part in baselines.split(rows_at_once(images, self.chunk))])
        target = target_of(logits, target, model.task)
        attributed = self.attribute(model, images, target, baselines)
        if isinstance(target, Tensor):
            expected = scores_of(before.mean(0).expand_as(logits), target, model.task)
        else:
            expected = scores_of(before, target).mean()
        gained = scores_of(logits, target, model.task) - expected
        return Explanation.of(attributed, logits, target, residual=attributed.sum((1, 2)) - gained)

    def from_model(
        self, model: Model, images: Float[Tensor, "b c h w"], target: Target = None, *, create_graph: bool = True
    ) -> Float[Tensor, "b h w"]:
        target = choose_target(model, images, target)
        return self.attribute(model, images, target, self.baselines(images), create_graph=create_graph)

    def attribute(
        self, model: Model, images: Tensor, target: Aim, baselines: Tensor, *, create_graph: bool = False
    ) -> Float[Tensor, "b h w"]:
        at = ((torch.arange(self.samples, device=images.device) + 0.5) / self.samples).to(images)[:, None, None, None]

        def points(rows: slice, steps: slice) -> tuple[Tensor, Tensor]:
            path = images[rows, None] - baselines[steps]
            return baselines[steps] + at[steps] * path, path / self.samples

        total = summed_gradients(
            model, images, target, points, self.samples, chunk=self.chunk, create_graph=create_graph
        )
        return total.sum(1)

    def baselines(self, images: Tensor) -> Float[Tensor, "samples c h w"]:
        """A reference image for each sample, in a seeded random order; the images' counts differ by at most one."""
        if self.reference is None and self.data is not None:
            self.reference = reference_images(load(self.data))
        if self.reference is None:
            raise UserError(
                "expected_gradients needs reference images: write expected_gradients:data=[DATA], or set "
                "explainer.reference to images [n c h w]"
            )
        if self.reference.shape[1:] != images.shape[1:]:
            given, right = list(self.reference.shape[1:]), list(images.shape[1:])
            raise UserError(
                f"the reference images are {given}, the images to explain {right}: the shapes must be equal"
            )
        if not len(self.reference):
            raise UserError("there are no reference images: explainer.reference is empty")
        if not self.reference.is_floating_point():
            raise UserError(f"reference images are pixels in [0, 1]; given {self.reference.dtype}: divide them by 255")
        source = randomness.generator("expected gradients", self.seed)
        order = torch.randperm(len(self.reference), generator=source)
        shuffled = torch.randperm(self.samples, generator=source)  # makes t independent of the baseline
        return self.reference[order[shuffled % len(order)]].to(images)
