"""Where in the last feature map a class is found."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens.core import Model, Output
from distilens.explain.explanation import Explanation, quietly, scores_of, target_of
from distilens.taps import LAST, cutting, grid


class GradCAM:
    """Where the features that speak for a class stand: channel weights from gradients, at a tap's resolution.

    `M = relu(sum_k a_k A_k)` with `a_k = mean_ij d y_c / d A_kij`: `A` the features at the tap, `y_c` the logit of the
    target class. Not negative; all zero where no channel speaks for the class. For a pooled linear head this is
    `relu(CAM) / (h w)`.

    For evaluation the trunk runs without a graph and only the head behind the tap is recorded, so a map at the last tap
    costs a forward.

    Source: Selvaraju et al. 2017 (arXiv 1610.02391), equations 1 and 2.
    """

    def __init__(self, *, tap: str = LAST):
        self.tap = tap

    def __call__(self, model: Model, images: Float[Tensor, "b c h w"], target: Tensor | None = None) -> Explanation:
        with quietly(model), model.reading(self.tap) as tap, cutting(tap):
            logits = model.logits(images)
            feature = tap.take()
            target = target_of(logits, target)
            (gradient,) = torch.autograd.grad(scores_of(logits, target).sum(), feature)
        return Explanation(weighted(feature.detach(), gradient), logits.detach(), target)

    def from_output(
        self, output: Output, target: Int[Tensor, " b"] | None = None, *, create_graph: bool = False
    ) -> Float[Tensor, "b h w"]:
        """Maps from the step's own features and logits; with `create_graph`, maps that a loss can train through.

        The output must come from a model that taps `self.tap`, with a graph from there to the logits.
        """
        feature = output.features[self.tap]
        score = scores_of(output.logits, target_of(output.logits, target)).sum()
        (gradient,) = torch.autograd.grad(score, feature, create_graph=create_graph, retain_graph=True)
        return weighted(feature, gradient)


def weighted(feature: Tensor, gradient: Tensor) -> Float[Tensor, "b h w"]:
    """`relu(sum_k mean(gradient_k) feature_k)` in float32, or float64 where the model is."""
    precision = torch.float64 if feature.dtype == torch.float64 else torch.float32
    feature, gradient = grid(feature).to(precision), grid(gradient).to(precision)
    with torch.autocast(feature.device.type, enabled=False):  # bfloat16 maps would lose a loss's resolution
        return torch.einsum("bchw,bc->bhw", feature, gradient.mean((2, 3))).relu()
