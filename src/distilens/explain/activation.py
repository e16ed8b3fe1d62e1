"""The family of class activation maps: features at a tap, weighted by the gradient of the class's logit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from distilens.explain.explanation import Explainer, Explanation, Target, checked, quietly, scores_of, target_of
from distilens.foundation.errors import UserError
from distilens.models.model import Model, Output
from distilens.models.taps import LAST, breaks_gradient, cutting, grid


class ActivationMap(Explainer):
    """A map from the features `A` at a tap and the gradient `g = d y_c / d A` of the class's logit there.

    A subclass implements `combine`. For evaluation the trunk runs without a graph, and only the layers behind the tap are
    recorded. So a map at the last tap costs about one forward pass. In a dense task `last` is the
    end of the encoder.
    """

    def __init__(self, *, tap: str = LAST):
        self.tap: str = tap  # type: ignore[reportIncompatibleVariableOverride]  # this family always reads one

    def combine(self, feature: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        raise NotImplementedError

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        return self.read(model, images, target, [self.tap])[self.tap]

    def at(
        self, taps: Sequence[str], model: Model, images: Float[Tensor, "b c h w"], target: Target = None
    ) -> dict[str, Explanation]:
        """Maps by tap, for several taps, from one forward pass and at most one backward pass."""
        with quietly(model):
            return self.read(model, checked(model, images), target, taps)

    def read(self, model: Model, images: Tensor, target: Target, taps: Sequence[str]) -> dict[str, Explanation]:
        with ExitStack() as stack:
            reading = [stack.enter_context(model.reading(tap)) for tap in taps]
            stack.enter_context(cutting(*reading))
            logits = model.logits(images)
            features = [tap.take() for tap in reading]
            target = target_of(logits, target, model.task)
            gradients = reaching(scores_of(logits, target, model.task).sum(), features)
        if gradients is None:
            raise UserError(no_gradient(model, taps))
        return {
            tap: Explanation.of(self.of(feature.detach(), gradient, model.size), logits.detach(), target)
            for tap, feature, gradient in zip(taps, features, gradients, strict=True)
        }

    def from_output(
        self, output: Output, target: Target = None, *, create_graph: bool = True
    ) -> Float[Tensor, "b h w"]:
        feature = tapped(output, self.tap)
        score = scores_of(output.logits, target_of(output.logits, target, output.task), output.task).sum()
        gradients = reaching(score, [feature], create_graph=create_graph, retain_graph=True)
        if gradients is None:
            raise UserError(
                f"the logits have no gradient at the tap {self.tap!r}: the output must come from a forward pass with a graph, "
                "through differentiable modules"
            )
        maps = self.of(feature, gradients[0], output.size)
        return maps if create_graph else maps.detach()

    def of(self, feature: Tensor, gradient: Tensor, size: tuple[int, int]) -> Float[Tensor, "b h w"]:
        """`combine` on grids, in float32 (float64 for a float64 model): bfloat16 maps are too coarse for a loss."""
        with torch.autocast(feature.device.type, enabled=False):
            return self.combine(full(grid(feature, size)), full(grid(gradient, size)))


class FeatureMap(ActivationMap):
    """A map from the features at a tap only: the same for every class, without gradients. A subclass implements `read_off`."""

    def read_off(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        raise NotImplementedError

    def read(self, model: Model, images: Tensor, target: Target, taps: Sequence[str]) -> dict[str, Explanation]:
        with ExitStack() as stack, torch.no_grad():
            reading = [stack.enter_context(model.reading(tap)) for tap in taps]
            logits = model.logits(images)
            maps = [self.on_grid(tap.take(), model.size) for tap in reading]
            target = target_of(logits, target, model.task)
            return {tap: Explanation.of(own, logits, target) for tap, own in zip(taps, maps, strict=True)}

    def from_output(
        self, output: Output, target: Target = None, *, create_graph: bool = True
    ) -> Float[Tensor, "b h w"]:
        maps = self.on_grid(tapped(output, self.tap), output.size)
        return maps if create_graph else maps.detach()

    def on_grid(self, feature: Tensor, size: tuple[int, int]) -> Float[Tensor, "b h w"]:
        with torch.autocast(feature.device.type, enabled=False):
            return self.read_off(full(grid(feature, size)))


def full(values: Tensor) -> Tensor:
    """The values in float32; float64 stays float64."""
    return values if values.dtype == torch.float64 else values.float()


def tapped(output: Output, tap: str) -> Tensor:
    """The feature at a tap of an output.

    Raises:
        UserError: the model did not tap it.
    """
    if tap not in output.features:
        there = ", ".join(output.features) or "none"
        raise UserError(f"the output has no feature at {tap!r}: call model.tap({tap!r}) first. Tapped: {there}")
    return output.features[tap]


def reaching(
    score: Tensor, features: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool | None = None
) -> Sequence[Tensor] | None:
    """The gradients of a score with respect to features; None if one of the features has no gradient."""
    if not score.requires_grad or not all(feature.requires_grad for feature in features):
        return None
    gradients = torch.autograd.grad(
        score, features, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )
    return None if any(gradient is None for gradient in gradients) else gradients


def no_gradient(model: Model, taps: Sequence[str]) -> str:
    broken = breaks_gradient(model.network, model.prepare(model.example()))
    where = (
        f"{broken} returns values without a gradient" if broken else "the logits have no gradient with respect to it"
    )
    return f"no gradient reaches the tap {', '.join(map(repr, taps))} of {model.name}: {where}. Tap a module behind it"
